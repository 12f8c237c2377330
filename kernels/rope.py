"""Rotary angles of a token grid, kept compact, and what they mean for every token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rope(NamedTuple):
    """Rotary angles of a token grid, compact: a table for each axis instead of one for each token.

    `cos` and `sin` are fp32 and flat: the time axis' (f, pairs[0]), then (h, pairs[1]) and
    (w, pairs[2]). A token at (i, j, k) rotates its channel pairs by its rows of the three, side by
    side. sum(pairs) is D/2, or N*D/2 where heads rotate differently.
    """

    cos: Tensor
    sin: Tensor
    grid: tuple[int, int, int]
    pairs: tuple[int, int, int]


def rope_tables(
    grid: tuple[int, int, int],
    pairs: tuple[int, int, int],
    theta: float = 10000.0,
    device: torch.device | str | None = None,
) -> Rope:
    """Tables of whole positions 0, 1, ... along each axis; angles in float64, kept in fp32.

    Wan: pairs (D/2 - 2*(D//6), D//6, D//6). CogVideoX: (8, 12, 12). HunyuanVideo: (8, 28, 28) with
    theta 256.
    """
    angles = []
    for length, count in zip(grid, pairs, strict=True):
        frequency = theta ** -(torch.arange(count, dtype=torch.float64, device=device) / count)
        position = torch.arange(length, dtype=torch.float64, device=device)
        angles.append(torch.outer(position, frequency).flatten())
    angle = torch.cat(angles)
    return Rope(angle.cos().float(), angle.sin().float(), (*grid,), (*pairs,))


def rope_of_tokens(rope: Rope, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, 1 or N, D/2) of every token of the grid."""
    sizes = [length * count for length, count in zip(rope.grid, rope.pairs, strict=True)]
    expanded = []
    for table in (rope.cos, rope.sin):
        axes = []
        for axis, part in enumerate(table.split(sizes)):
            shape = [1, 1, 1, rope.pairs[axis]]
            shape[axis] = rope.grid[axis]
            axes.append(part.view(shape).expand(*rope.grid, -1))
        expanded.append(torch.cat(axes, dim=-1).flatten(0, 2).unflatten(-1, (-1, head_dim // 2)))
    return expanded[0], expanded[1]


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the channel pairs of x (B, L, N, D) by angles (L, 1 or N, D/2)."""
    if interleaved:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    else:
        first, second = x.unflatten(-1, (2, -1)).unbind(-2)
    pairs = (first * cos - second * sin, first * sin + second * cos)
    return torch.stack(pairs, dim=-1 if interleaved else -2).flatten(-2)
