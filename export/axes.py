"""Which axes of a graph's inputs vary, and how: found by asking for examples of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from ..runtime.models.layers import Sizes


class Axis(NamedTuple):
    """An axis of `factor * size + more` where `size` is one of `Sizes`."""

    size: str
    factor: int
    more: int

    def __str__(self) -> str:
        scaled = self.size if self.factor == 1 else f"{self.factor}*{self.size}"
        return f"{scaled} + {self.more}" if self.more else scaled


Examples = Callable[[Sizes], Mapping[str, Tensor]]
Axes = dict[str, dict[int, Axis]]


def find_axes(examples: Examples, base: Sizes) -> Axes:
    """The axes of each input that vary with sizes.

    Raises `ValueError` for an axis that two sizes change: one graph can't be told so.
    """
    shapes = {name: tuple(x.shape) for name, x in examples(base).items()}
    axes: Axes = {name: {} for name in shapes}
    for size, value in base._asdict().items():
        grown = examples(base._replace(**{size: value + 1}))
        for name, shape in shapes.items():
            for axis, (before, after) in enumerate(zip(shape, grown[name].shape, strict=True)):
                if before == after:
                    continue
                if axis in axes[name]:
                    other = axes[name][axis].size
                    raise ValueError(f"axis {axis} of {name} varies with {other} and {size}")
                factor = after - before
                axes[name][axis] = Axis(size, factor, before - factor * value)
    return axes


def dynamic_shapes(axes: Axes, most: Mapping[str, int]) -> tuple[dict[int, object], ...]:
    """The same for `torch.export`; axes of one size share it. `most`: limits of sizes."""
    used = {axis.size for varying in axes.values() for axis in varying.values()}
    dims = {size: Dim(size, min=1, max=most.get(size)) for size in used}
    return tuple(
        {i: _expression(dims[axis.size], axis) for i, axis in varying.items()}
        for varying in axes.values()
    )


def symbolic_shape(shape: torch.Size, varying: Mapping[int, Axis]) -> tuple[int | str, ...]:
    """A shape with expressions where axes vary."""
    return tuple(str(varying[i]) if i in varying else size for i, size in enumerate(shape))


def _expression(dim: Dim, axis: Axis) -> object:
    scaled = dim if axis.factor == 1 else axis.factor * dim
    return scaled + axis.more if axis.more else scaled
