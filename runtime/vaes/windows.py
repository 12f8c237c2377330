"""Work on windows of a picture whose results, side by side, are those of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from torch import Tensor

Work = Callable[[Tensor, int], Tensor]


class Span(NamedTuple):
    """One tile along one axis: what is cut from the input, where its result goes, what is kept."""

    cut: slice
    place: slice
    keep: slice


class Windows(NamedTuple):
    """Tiles of `core` (height, width) input pixels, each seen with `reach` pixels around it.

    The work makes `up / down` pixels a side of one; where it shrinks, `core` and `reach` are
    multiples of `down`.
    """

    core: tuple[int, int]
    reach: int
    up: int = 1
    down: int = 1

    def run(self, x: Tensor, work: Work) -> Tensor:
        """`work(window, number)` of every window of x (..., H, W), put together."""
        height, width = x.shape[-2:]
        spans = product(self.spans(height, self.core[0]), self.spans(width, self.core[1]))
        whole = None
        for number, (rows, columns) in enumerate(spans):
            part = work(x[..., rows.cut, columns.cut], number)
            if whole is None:
                sides = (side * self.up // self.down for side in (height, width))
                whole = part.new_empty(*part.shape[:-2], *sides)
            whole[..., rows.place, columns.place] = part[..., rows.keep, columns.keep]
        assert whole is not None
        return whole

    def spans(self, length: int, core: int) -> Iterator[Span]:
        """The tiles of an axis of `length`, in order."""
        for start in range(0, length, core):
            stop = min(start + core, length)
            low, high = max(start - self.reach, 0), min(stop + self.reach, length)
            first, last = (edge * self.up // self.down for edge in (start, stop))
            skip = (start - low) * self.up // self.down
            yield Span(slice(low, high), slice(first, last), slice(skip, skip + last - first))
