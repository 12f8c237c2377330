"""The runtime: from a request to a finished video."""
