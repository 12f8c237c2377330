"""Requests being made: one, many in turns, and what a caller holds of each."""
