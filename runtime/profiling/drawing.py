"""What every chart is drawn with: markers, dashes, round numbers on an axis."""

from __future__ import annotations

import math

from .markup import Markup, tag

# Markers differ in shape as well as in colour; each fits into 14 by 14 around the origin.
SHAPES = (
    "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z",
    "M-5.5 -5.5H5.5V5.5H-5.5Z",
    "M0 -7.5L7.5 0L0 7.5L-7.5 0Z",
    "M0 -7L7 5.5H-7Z",
    "M0 7L7 -5.5H-7Z",
    "M-2.2 -6.5H2.2V-2.2H6.5V2.2H2.2V6.5H-2.2V2.2H-6.5V-2.2H-2.2Z",
)
DASHES = (None, "7 4", "2 3", "9 3 2 3")


def marker(index: int, color: str, **attributes: object) -> Markup:
    shape = SHAPES[index % len(SHAPES)]
    return tag("path", d=shape, style=f"fill:{color}", **attributes)


def ticks(highest: float, about: int = 5) -> list[float]:
    """Round numbers from 0 to the highest or just past it."""
    if not highest > 0:
        return [0.0, 1.0]
    raw = highest / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))
    return [step * i for i in range(math.ceil(highest / step - 1e-9) + 1)]


def decades(lowest: float, highest: float) -> list[float]:
    """Powers of ten around both."""
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]
