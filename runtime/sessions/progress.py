"""What a request tells about itself while it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`index` of `total` parts of a stage are done.

    stage: "queued" (submitted, and not begun), "encode", "denoise", whose parts are steps, or
    "decode", whose parts are frames.
    """

    stage: str
    index: int
    total: int
