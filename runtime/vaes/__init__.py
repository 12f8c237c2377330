"""Autoencoders between pixels and latents, one file a family."""
