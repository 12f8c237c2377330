"""Options of the command line that are more than a number or a name."""

from __future__ import annotations

import os
import re

from ..errors import UsageError
from ..requests.conditions import Condition
from ..requests.guidance_options import PLAIN, Guidance

SIZE = re.compile(r"(-?\d+)[xX](-?\d+)")


def parse_lora(text: str) -> tuple[str, float]:
    """PATH or PATH:WEIGHT; a path may have colons of its own."""
    path, colon, weight = text.rpartition(":")
    if os.path.exists(text) or not colon:
        path, weight = text, "1"
    try:
        value = float(weight)
    except ValueError:
        raise UsageError(f"--lora {text!r} is neither a path nor PATH:WEIGHT") from None
    if not os.path.exists(path):
        raise UsageError(f"--lora {text!r}: no file or folder {path!r}")
    return path, value


def parse_size(size: str | None, name: str = "size") -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    if not (found := SIZE.fullmatch(size.strip())):
        raise UsageError(f"{name} {size!r} is not WIDTHxHEIGHT, such as 64x64")
    return int(found[1]), int(found[2])


def parse_numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of numbers, such as 1,0.75,0.5"
        ) from None


def guidance(rescale: float, interval: str | None, zero_star: bool) -> Guidance:
    parts = parse_numbers("--guidance-interval", interval) or PLAIN.interval
    if len(parts) != 2:
        raise UsageError(f"--guidance-interval {interval!r} is not two parts, such as 0.1,0.8")
    return Guidance(rescale=rescale, interval=parts, zero_star=zero_star)


def conditions(
    clip: str | None, mask: str | None, references: list[str], strength: float
) -> tuple[Condition, ...]:
    if mask is not None and clip is None:
        raise UsageError(f"--mask {mask!r} belongs to a --clip; give one")
    shown = [Condition(image=path, frame=None, strength=strength) for path in references]
    if clip is not None:
        kept = 0.0 if mask is None else 1.0 if mask == "1" else mask
        shown.append(Condition(frames=clip, mask=kept, strength=strength))
    return tuple(shown)


def parse_pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{option} {text!r} is not NAME=VALUE, such as attention=triton")
    return name, value
