"""Low-rank changes of weights: read, applied, removed."""
