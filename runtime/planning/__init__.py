"""Every number of a request settled, what it needs, and how it will run."""
