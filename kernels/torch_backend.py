"""The operations in plain PyTorch, for CPUs and wherever Triton is not.

Where the definition is already the best form, it is taken from there. Arguments are not checked:
the public functions do that, and a transformer gives what it gave before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import added_to_scores, check_quantized_linear
from .formats import Quantized, format_of, quantize_tokens
from .reference import guided_step as guided_step
from .reference import norm_silu as norm_silu
from .reference import quantized_attention as quantized_attention
from .reference import softmax_or_zero
from .rope import Rope, rope_of_tokens
from .tiles import TileMask


class TokenRope(NamedTuple):
    """Angles of every token, fp32 (L, 1 or N, D/2): what `expand_rope` makes of compact tables.

    `turns` are the same as complex numbers; `halves` the two factors of half-split pairs, (L, 1 or
    N, D) each: cosines, signed sines.
    """

    cos: Tensor
    sin: Tensor
    turns: Tensor
    halves: tuple[Tensor, Tensor]


def expand_rope(rope: Rope, head_dim: int) -> TokenRope:
    """Tables a token instead of an axis: more to read, and nothing to gather, in each layer."""
    cos, sin = rope_of_tokens(rope, head_dim)
    halves = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return TokenRope(cos, sin, torch.complex(cos, sin), halves)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None = None) -> Tensor:
    """As `reference.gate_residual`."""
    if gate is None:
        return x + y
    return torch.addcmul(x.float(), y.float(), gate.float()).to(x.dtype)


def norm_modulate(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    norm: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    quantize: str | None = None,
) -> Tensor | Quantized | tuple[Tensor, Tensor | Quantized]:
    """As `reference.norm_modulate`."""
    x = x if residual is None else gate_residual(x, residual, gate)
    hidden = _norm(x, norm, weight, bias, eps)
    hidden = _modulate(hidden, scale, shift)
    result = hidden.to(x.dtype) if quantize is None else quantize_tokens(hidden, quantize)
    return result if residual is None else (x, result)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    rope: Rope | TokenRope | None = None,
    *,
    norm: str = "rms_across_heads",
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    start: int = 0,
    layout: str = "blnd",
) -> tuple[Tensor, Tensor]:
    """As `reference.qk_norm_rope`; takes expanded tables too."""
    if isinstance(rope, Rope):
        rope = expand_rope(rope, q.shape[-1])
    kind, over = norm.split("_", 1)

    def one(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        hidden = x.flatten(2) if over == "across_heads" else x
        hidden = _norm(hidden, kind, weight, bias, eps).view(x.shape)
        if rope is not None and layout == "bnld" and interleaved and _is_whole(x, rope):
            return _rotate_to_heads(hidden, rope).to(x.dtype)
        if rope is not None:
            hidden = _rotate_from(hidden, rope, start, interleaved)
        hidden = hidden.to(x.dtype)
        if layout == "blnd":
            return hidden.contiguous().transpose(1, 2)
        return hidden.transpose(1, 2).contiguous()

    return one(q, q_weight, q_bias), one(k, k_weight, k_bias)


def patchify(
    latents: Tensor,
    patch_size: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels_first: bool = True,
) -> Tensor:
    """As `reference.patchify`, the product in the weight's dtype."""
    p, q, r = patch_size
    batch, channels, frames, height, width = latents.shape
    x = latents.reshape(batch, channels, frames // p, p, height // q, q, width // r, r)
    order = (0, 2, 4, 6, 1, 3, 5, 7) if channels_first else (0, 2, 4, 6, 3, 5, 7, 1)
    tokens = x.permute(order).flatten(4)
    if weight is None:
        return tokens.contiguous()
    return F.linear(
        tokens.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)
    )


def unpatchify(
    tokens: Tensor,
    patch_size: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-6,
    channels_first: bool = True,
) -> Tensor:
    """As `reference.unpatchify`, the product in the tokens' dtype."""
    if weight is not None:
        dtype = tokens.dtype
        if norm is not None:
            tokens = _norm(tokens, norm, norm_weight, norm_bias, eps)
        tokens = _modulate(tokens, scale, shift).to(dtype)
        tokens = F.linear(tokens, weight.to(dtype), None if bias is None else bias.to(dtype))
    batch, f, h, w, _ = tokens.shape
    p, q, r = patch_size
    if channels_first:
        x = tokens.reshape(batch, f, h, w, -1, p, q, r).permute(0, 4, 1, 5, 2, 6, 3, 7)
    else:
        x = tokens.reshape(batch, f, h, w, p, q, r, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(batch, -1, f * p, h * q, w * r)


def _norm(x: Tensor, norm: str, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm or RMSNorm with affine over the last axis, fp32 out."""
    weight = None if weight is None else weight.float()
    bias = None if bias is None else bias.float()
    x = x.float()
    if norm == "layer":
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x = x * torch.rsqrt(length.square() / x.shape[-1] + eps)
    return _affine(x, weight, bias)


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    scale, shift = (None if part is None else part.float() for part in (scale, shift))
    return _affine(x, None if scale is None else 1 + scale, shift)


def _affine(x: Tensor, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    """`x * factor + shift` of a tensor that nobody else holds, where it lies if that can be: on a
    CPU fresh memory costs more than the arithmetic."""
    out = x if x.dtype == torch.float32 and not torch.is_grad_enabled() else None
    if factor is None:
        return x if shift is None else torch.add(x, shift, out=out)
    if shift is None:
        return torch.mul(x, factor, out=out)
    return torch.addcmul(shift, x, factor, out=out)


def _is_whole(x: Tensor, rope: TokenRope) -> bool:
    """Whether every token is turned, and complex numbers may do it: a compiler has none."""
    ready = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
    return ready and rope.cos.shape[0] == x.shape[1]


def _rotate_to_heads(x: Tensor, rope: TokenRope) -> Tensor:
    """Rotate interleaved pairs of x (B, L, N, D) into a fresh (B, N, L, D), in one pass."""
    batch, length, heads, head_dim = x.shape
    out = x.new_empty(batch, heads, length, head_dim)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2))).transpose(1, 2)
    torch.mul(
        pairs, rope.turns.transpose(0, 1), out=torch.view_as_complex(out.unflatten(-1, (-1, 2)))
    )
    return out


def _rotate_from(x: Tensor, rope: TokenRope, start: int, interleaved: bool) -> Tensor:
    """Rotate the tokens that the tables are of, from the one at `start` on."""
    count = rope.cos.shape[0]
    if count == x.shape[1]:
        return _rotate(x, rope, interleaved)
    before, turned, after = x.split((start, count, x.shape[1] - start - count), dim=1)
    return torch.cat([before, _rotate(turned, rope, interleaved), after], dim=1)


def _rotate(x: Tensor, rope: TokenRope, interleaved: bool) -> Tensor:
    if interleaved:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        pairs = (first * rope.cos - second * rope.sin, first * rope.sin + second * rope.cos)
        return torch.stack(pairs, dim=-1).flatten(-2)
    cos, signed_sin = rope.halves  # half-split pairs turn without strided writes
    return (x * cos).addcmul_(torch.roll(x, x.shape[-1] // 2, dims=-1), signed_sin)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """As `reference.attention`, by PyTorch's own choice of kernel."""
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(query.dtype)
    if value.device.type == "cpu":
        value = value.contiguous()  # read once for every query: rows side by side pay for the copy
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def matmul_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """As `reference.attention`, two products around a softmax in fp32.

    Faster to train on a CPU at a hundred tokens, where the fused kernel's backward is slow.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(query * factor, key.mT).float()
    if bias is None:
        weights = scores.softmax(dim=-1)
    else:
        weights = softmax_or_zero(scores + added_to_scores(bias))
    return torch.matmul(weights.to(value.dtype), value)


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: TileMask, *, scale: float | None = None
) -> Tensor:
    """As `reference.block_sparse_attention`, at the cost of a dense mask."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=tiles.dense(), scale=scale)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear_gelu`, the product rounded before the activation."""
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def quantized_linear(
    x: Tensor | Quantized,
    weight: Quantized,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """As `reference.quantized_linear`; 8-bit values are exact in bf16, which multiplies fastest."""
    dtype = check_quantized_linear(x, weight, bias, dtype)
    x = x if isinstance(x, Quantized) else quantize_tokens(x, format_of(weight))
    exact = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    hidden = F.linear(x.values.to(exact), weight.values.to(exact)).float()
    hidden = hidden * x.scale * weight.scale.mT
    hidden = hidden if bias is None else hidden + bias.float()
    return (F.gelu(hidden, approximate="tanh") if gelu else hidden).to(dtype)
