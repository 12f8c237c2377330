"""Strided tensors as a few merged axes, so that one kernel reads any layout without a copy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._triton import tl, triton

AXES = 4


@triton.jit
def unravel(group, n1, n2):
    """Places of a group along the three outer axes: divided in 32 bits, which are cheap, given in
    64, which reach all of a large tensor."""
    first = group // n2
    return (first // n1).to(tl.int64), (first % n1).to(tl.int64), (group % n2).to(tl.int64)


def merge_axes(
    shape: Sequence[int], strides: Sequence[Sequence[int]], keep_first: bool = False
) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring axes where every tensor allows it, to exactly `AXES` sizes and strides.

    A tensor that broadcasts along an axis has stride 0 there. `keep_first` leaves the first axis
    alone. Raises `ValueError` where more than `AXES` axes remain.
    """
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1 and not (keep_first and axis == 0):
            continue
        first = not sizes or (keep_first and len(sizes) == 1)
        if not first and all(
            kept[-1] == own[axis] * size for kept, own in zip(merged, strides, strict=True)
        ):
            sizes[-1] *= size
            for kept, own in zip(merged, strides, strict=True):
                kept[-1] = own[axis]
        else:
            sizes.append(size)
            for kept, own in zip(merged, strides, strict=True):
                kept.append(own[axis])
    if keep_first and len(sizes) == 1:
        sizes.append(1)
        for kept in merged:
            kept.append(0)
    missing = AXES - len(sizes)
    if missing < 0:
        raise ValueError(
            f"axes {tuple(shape)} do not merge to {AXES} or fewer with these strides; "
            "make the tensor contiguous"
        )
    return [1] * missing + sizes, [[0] * missing + kept for kept in merged]


def token_axes(
    tensors: Sequence[Tensor | None], lead: Sequence[int], keep_first: bool = False
) -> tuple[list[int], list[list[int]]]:
    """As `merge_axes` of the leading axes of tensors (..., C); strides end with the channels'.

    Axes that a tensor lacks, and all of an absent one, have stride 0.
    """
    sizes, strides = merge_axes(
        lead, [leading_strides(tensor, lead) for tensor in tensors], keep_first
    )
    channels = [0 if tensor is None else tensor.stride(-1) for tensor in tensors]
    return sizes, [[*own, channel] for own, channel in zip(strides, channels, strict=True)]


def dense(*vectors: Tensor | None) -> list[Tensor | None]:
    """Optional vectors, each copied only if its elements are not neighbours."""
    return [None if vector is None else vector.contiguous() for vector in vectors]


def leading_strides(tensor: Tensor | None, shape: Sequence[int]) -> list[int]:
    """Strides of `tensor` (..., C) broadcast to leading axes `shape`; zeros for an absent one."""
    if tensor is None:
        return [0] * len(shape)
    return list(tensor.expand(*shape, tensor.shape[-1]).stride()[:-1])
