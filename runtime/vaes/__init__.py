"""Autoencoders, and what drives them, to pixels and samples and back.

A family's are `<family>.py`, which codes; `<family>_layers.py`, what that is made of;
`<family>_sizes.py`, what it costs; and `<family>_original.py`, where its authors name weights
otherwise. The sound codec is `audio.py`.
"""
