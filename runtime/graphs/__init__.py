"""Components that run as exported graphs: their manifest, and what stands in for the modules."""
