"""Measured numbers as people read them: three digits and a unit."""

from __future__ import annotations

THIN = "\N{NARROW NO-BREAK SPACE}"
TIMES = "\N{MULTIPLICATION SIGN}"
ABSENT = "\N{EN DASH}"
SCALES = (
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
)


def digits(value: float) -> str:
    """Three significant digits, without an exponent: 0.0123, 1.23, 12.3, 1,234."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0
    while size < 99.95 and places < 12:  # 99.95 would round to a fourth digit
        size, places = size * 10, places + 1
    return f"{value:,.{places}f}"


def quantity(value: float | None, unit: str) -> str:
    """12.3 ms, 790 TFLOP/s, 4.80 GB; a dash where nothing was measured."""
    if value is None:
        return ABSENT
    if abs(value) < 1e-12:  # of nothing that is measured here
        return f"0{THIN}{unit}"
    fits = [(factor, prefix) for factor, prefix in SCALES if abs(value) >= 0.9995 * factor]
    factor, prefix = fits[0] if fits else SCALES[-1]
    if unit == "s" and factor > 1:
        factor, prefix = 1.0, ""
    return f"{digits(value / factor)}{THIN}{prefix}{unit}"


def seconds(value: float | None) -> str:
    return quantity(value, "s")


def size(value: float | None) -> str:
    return quantity(value, "B")


def share(part: float, whole: float) -> str:
    """Per cent of a whole."""
    return f"{100 * part / whole:.1f}{THIN}%" if whole else ABSENT


def times(value: float | None) -> str:
    """A factor; a dash where there is nothing to divide by."""
    return ABSENT if value is None else f"{digits(value)}{TIMES}"


def change(before: float, after: float) -> str:
    """Per cent more or less, with a minus sign as wide as the plus."""
    if not before:
        return ABSENT
    percent = 100 * (after / before - 1)
    sign = "+" if percent >= 0.05 else "\N{MINUS SIGN}" if percent <= -0.05 else ""
    return f"{sign}{abs(percent):.1f}{THIN}%"


def per(value: float | None, divisor: float | None) -> float | None:
    """A ratio, or nothing where either side is missing or zero."""
    return value / divisor if value and divisor else None


def plain_power(power: int) -> str:
    """Ten to a power as a number where that is short: 0.01, 1, 1,000."""
    if not -3 <= power <= 4:
        return f"1e{power}"
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def whole(value: float) -> str:
    """A power of ten with its prefix and no more: 10 T."""
    factor, prefix = next(scale for scale in SCALES if value >= 0.9995 * scale[0])
    return f"{value / factor:.0f}{THIN}{prefix}"


def signed_seconds(value: float) -> str:
    """+12.3 ms, or a minus sign as wide."""
    sign = "+" if value > 0 else "\N{MINUS SIGN}" if value < 0 else ""
    return f"{sign}{seconds(abs(value))}"
