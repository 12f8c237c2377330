"""Where a file comes from, written into it when it is made, and read back: signed manifests,
invisible and visible marks."""
