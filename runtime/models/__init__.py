"""Transformers, one file a family; they share one silhouette."""
