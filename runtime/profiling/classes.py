"""What an operation of a step does: the classes that a report splits steps into, by their names."""

from __future__ import annotations

ATTENTION, PRODUCTS, CONVOLUTIONS = "attention", "matrix products", "convolutions"
ELEMENTWISE, COPIES, GAPS = "fused elementwise", "copies", "launch gaps"
CLASSES = (ATTENTION, PRODUCTS, CONVOLUTIONS, ELEMENTWISE, COPIES, GAPS)
HIDDEN = "not attributed"  # what no class accounts for
