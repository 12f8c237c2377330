"""What several transformers are built of."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...kernels import Operations, Rope


class Sizes(NamedTuple):
    """How large the inputs of a model are, to export it with: rows of a batch, the grid of tokens,
    tokens of a text and of what a picture encoder saw."""

    batch: int = 2
    frames: int = 3
    rows: int = 4
    columns: int = 5
    tokens: int = 7
    seen: int = 6


class CutTables(nn.Module):
    """Rotation tables of every grid up to a whole one, whose axes have channels of their own."""

    def __init__(self, whole: Rope) -> None:
        super().__init__()
        self.pairs = whole.pairs
        sizes = [length * count for length, count in zip(whole.grid, whole.pairs, strict=True)]
        for kind in ("cos", "sin"):
            for axis, part in enumerate(getattr(whole, kind).split(sizes)):
                self.register_buffer(f"{kind}{axis}", part.clone(), persistent=False)

    def forward(self, grid: tuple[int, int, int]) -> Rope:
        def cut(kind: str) -> Tensor:
            parts = (
                getattr(self, f"{kind}{axis}")[: size * count]
                for axis, (size, count) in enumerate(zip(grid, self.pairs, strict=True))
            )
            return torch.cat(list(parts))

        return Rope(cut("cos"), cut("sin"), grid, self.pairs)


class LinearGelu(nn.Linear):
    """A linear layer and its GELU, in the tanh form: (..., in_features) to (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, ops: Operations) -> None:
        super().__init__(in_features, out_features)
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear_gelu(x, self.weight, self.bias)


def sinusoidal_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Cosines then sines of `timesteps` (...,) in fp32, shape (..., dim).

    As diffusers' `Timesteps(dim, flip_sin_to_cos=True, downscale_freq_shift=0)`.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angle = timesteps[..., None].float() * torch.exp(exponent / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
