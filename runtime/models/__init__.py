"""Transformers, one file a family in one silhouette, and what they share."""
