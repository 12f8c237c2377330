"""The operations in plain PyTorch, for CPUs and wherever Triton is not.

Where the definition is already the best form, it is taken from there: a compiler fuses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_attention, check_linear, check_tiles
from .reference import (
    Quantized,
    Rope,
    check_quantized_linear,
    format_of,
    gate_residual,
    quantize_tokens,
    rope_of_tokens,
)
from .reference import guided_step as guided_step
from .reference import norm_silu as norm_silu
from .tiles import TileMask


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
    rope: Rope | None = None,
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
    """As `reference.qk_norm_rope`."""
    rotation = None if rope is None else rope_of_tokens(rope, q.shape[-1])
    kind, over = norm.split("_", 1)
    out = []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        hidden = x.flatten(2) if over == "across_heads" else x
        hidden = _norm(hidden, kind, weight, bias, eps).view(x.shape)
        if rotation is not None:
            cos, sin = _unturned(rotation, start, x.shape[1])
            hidden = _rotate(hidden, cos, sin, interleaved)
        hidden = hidden.to(x.dtype)
        if layout == "blnd":
            out.append(hidden.contiguous().transpose(1, 2))
        else:
            out.append(hidden.transpose(1, 2).contiguous())
    return out[0], out[1]


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
    if norm == "layer":
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps)
    x = x.float()
    x = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    x = x if scale is None else x * (1 + scale.float())
    return x if shift is None else x + shift.float()


def _unturned(rotation: tuple[Tensor, Tensor], start: int, length: int) -> tuple[Tensor, Tensor]:
    """Tables of all tokens, those outside the grid turned by nothing."""
    cos, sin = rotation
    around = (0, 0, 0, 0, start, length - start - cos.shape[0])
    return F.pad(cos, around, value=1.0), F.pad(sin, around)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        pairs = (first * cos - second * sin, first * sin + second * cos)
        return torch.stack(pairs, dim=-1).flatten(-2)
    # Half-split pairs turn without strided writes.
    cos, sin = torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)
    return (x * cos).addcmul_(torch.roll(x, x.shape[-1] // 2, dims=-1), sin)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """As `reference.attention`, by PyTorch's own choice of kernel."""
    scale = check_attention(query, key, value, bias, scale)
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: TileMask, *, scale: float | None = None
) -> Tensor:
    """As `reference.block_sparse_attention`, at the cost of a dense mask."""
    scale = check_attention(query, key, value, None, scale)
    check_tiles(query, key, tiles)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=tiles.dense(), scale=scale)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `reference.linear_gelu`, the product rounded before the activation."""
    check_linear(x, weight, bias)
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
