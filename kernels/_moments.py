"""Means and variances of more values than one program holds: of parts, then merged exactly.

Parts are (count, mean, sum of squared distances to it), merged as Chan, Golub and LeVeque do; no
atomics, so the result is the same every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._triton import launch, power_of_2, tl, triton

MAX_SPLITS = 256


@triton.jit(do_not_specialize=["splits", "groups"])
def _merge_moments(parts, merged, splits, groups, SPLITS: tl.constexpr):
    sample, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    split = tl.arange(0, SPLITS)
    mask = split < splits
    at = parts + ((sample * splits + split) * groups + group) * 3
    count = tl.load(at, mask, 0.0)
    mean = tl.load(at + 1, mask, 0.0)
    squares = tl.load(at + 2, mask, 0.0)
    total = tl.sum(count, 0)
    whole = tl.sum(mean * (count / total), 0)
    away = mean - whole
    spread = tl.sum(squares, 0) + tl.sum(count * away * away, 0)
    at = merged + tl.program_id(0) * 2
    tl.store(at, whole)
    tl.store(at + 1, spread / total)


def merge_moments(parts: Tensor) -> Tensor:
    """Mean and variance (B, groups, 2) of parts (B, splits, groups, 3), fp32."""
    samples, splits, groups, _ = parts.shape
    merged = parts.new_empty(samples, groups, 2)
    launch(
        _merge_moments,
        (samples * groups,),
        *(parts, merged, splits, groups),
        SPLITS=power_of_2(splits),
        num_warps=1,
    )
    return merged


def empty_parts(x: Tensor, samples: int, splits: int, groups: int) -> Tensor:
    """Where the moments of parts go."""
    return x.new_empty(samples, splits, groups, 3, dtype=torch.float32)
