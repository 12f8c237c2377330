"""What a request tells about itself while it is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`index` of `total` parts of a stage are done: 'encode', 'denoise', 'decode' or 'write'."""

    stage: str
    index: int
    total: int
