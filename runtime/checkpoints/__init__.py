"""Folders and files of weights: opened, named, fetched, checked, streamed."""
