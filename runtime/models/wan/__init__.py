"""Wan: 2.1 and 2.2, their picture, control and two-expert variants."""
