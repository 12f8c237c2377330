"""The operations that every transformer shares, on plain tensors.

Shape legend: B batch, F H W token grid, L tokens (F*H*W) or text tokens, N heads, D head size,
d = N*D.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, "Tensor | None"], Tensor]


def sinusoidal_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Cosines then sines of `timesteps` (...,) in fp32, shape (..., dim).

    As diffusers' `Timesteps(dim, flip_sin_to_cos=True, downscale_freq_shift=0)`.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angle = timesteps[..., None].float() * torch.exp(exponent / half)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def rope_tables(
    grid: tuple[int, int, int], head_dim: int, theta: float = 10000.0, device=None
) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine tables for `rotate`, each fp32 (F*H*W, 1, 1, head_dim).

    Angles are computed in float64, as diffusers' `WanRotaryPosEmbed` does. The axes share the
    head's channels: a third each for height and width, time takes the rest.
    """
    side = 2 * (head_dim // 6)
    angles = []
    for axis, (length, dim) in enumerate(zip(grid, (head_dim - 2 * side, side, side), strict=True)):
        steps = torch.arange(0, dim, 2, dtype=torch.float64, device=device)
        position = torch.arange(length, dtype=torch.float64, device=device)
        angle = torch.outer(position, 1.0 / (theta ** (steps / dim)))
        shape = [1, 1, 1, -1]
        shape[axis] = length
        angles.append(angle.view(shape).expand(*grid, -1))
    angle = torch.cat(angles, dim=-1).flatten(0, 2)[:, None, None, :]
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (j, j + D/2) of `x` (B, L, 2, N, D) by the tables' angles, in fp32."""
    cos, signed_sin = rope
    return (x * cos).addcmul_(torch.roll(x, x.shape[-1] // 2, dims=-1), signed_sin)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last axis in fp32; `weight` broadcasts against `x`."""
    x = x.float()
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * weight * torch.rsqrt(length.square() / x.shape[-1] + eps)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm without affine, then `* (1 + scale) + shift`; fp32 inside, dtype of `x` out."""
    normed = F.layer_norm(x.float(), x.shape[-1:], None, None, eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def gated_residual(x: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """`x + branch * gate`; fp32 inside, dtype of `x` out."""
    return torch.addcmul(x.float(), branch.float(), gate).to(x.dtype)


def attend_sdpa(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention of (B, N, L, D) by PyTorch's fused kernel; `bias` is added to the scores."""
    bias = None if bias is None else bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def attend_matmul(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same written out as two products around a softmax in fp32.

    Faster to train on a CPU at a hundred tokens, where the fused kernel's backward is slow.
    """
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)).float()
    scores = scores if bias is None else scores + bias
    return torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)


ATTENTION: dict[str, Attend] = {"sdpa": attend_sdpa, "matmul": attend_matmul}
