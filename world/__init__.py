"""The procedural world that the embedded model knows."""
