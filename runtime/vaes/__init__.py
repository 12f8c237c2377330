"""Autoencoders, one file a family, and what drives them, to pixels and samples and back."""
