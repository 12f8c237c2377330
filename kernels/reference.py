"""What every operation means, in plain PyTorch: fp32 inside, one rounding at the end.

A kernel has the signature of its function here and must agree with it.

Shape legend: B batch, C or d channels, F H W frames, height and width (f h w of the token grid),
L tokens, N heads, D head size. Leading axes are all but the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import (
    added_to_scores,
    check_attention,
    check_linear,
    check_quantized_linear,
    check_tiles,
)
from .formats import (
    KEY_BLOCK,
    Quantized,
    dequantize,
    format_of,
    fp32,
    quantize_tokens,
)
from .rope import Rope, rope_of_tokens, rotate
from .tiles import TileMask

LEAST_DEVIATION = 2.0**-19  # of a prediction from its mean, over the mean; less may be rounding


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None = None) -> Tensor:
    """`x + gate * y` in the dtype of `x`.

    x, y (..., C); gate (..., C) with leading axes that broadcast to those of `x`, None for 1.
    """
    y = fp32(y) if gate is None else fp32(y) * fp32(gate)
    return (fp32(x) + y).to(x.dtype)


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
    """`norm(x) * (1 + scale) + shift` over the channels, in the dtype of `x`.

    x (..., C); norm "layer" or "rms", with the affine `weight` and `bias` (C,) where given; scale
    and shift (..., C), whose leading axes broadcast to those of `x`: per sample, frame or token.
    With `residual` (..., C), `x` becomes `x + gate * residual` first, rounded to its dtype, and the
    pair (new x, result) is returned. With `quantize` "fp8" or "int8" the result is `Quantized`.
    """
    new_x = x if residual is None else gate_residual(x, residual, gate)
    hidden = affine(normalize(fp32(new_x), norm, eps), weight, bias)
    hidden = modulate(hidden, scale, shift)
    result = hidden.to(x.dtype) if quantize is None else quantize_tokens(hidden, quantize)
    return result if residual is None else (new_x, result)


def normalize(x: Tensor, norm: str, eps: float) -> Tensor:
    """LayerNorm ("layer") or RMSNorm ("rms") over the last axis of an fp32 tensor, no affine."""
    if norm == "layer":
        x = x - x.mean(dim=-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """`x * (1 + scale) + shift`, each where given, in fp32."""
    x = x if scale is None else x * (1 + fp32(scale))
    return x if shift is None else x + fp32(shift)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """`x * weight + bias`, each where given, in fp32."""
    x = x if weight is None else x * fp32(weight)
    return x if bias is None else x + fp32(bias)


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
    """Normed and rotated queries and keys, logically (B, N, L, D), ready for attention.

    q, k (B, L, N, D), such as the views `qkv.unflatten(-1, (3, N, D)).unbind(2)` of one product.
    norm: "rms_across_heads" (Wan; weights (N*D,)), "rms_per_head" (HunyuanVideo, LTX; (D,)) or
    "layer_per_head" (CogVideoX; (D,), with biases). Tokens start .. start + f*h*w are the grid's
    and are rotated; others, the text of joint attention, are not. Pairs of channels are
    (2j, 2j+1) where `interleaved`, else (j, j + D/2). layout "blnd" or "bnld": how the result lies
    in memory.
    """
    rotation = None if rope is None else rope_of_tokens(rope, q.shape[-1])
    out = []
    for x, weight, bias in ((q, q_weight, q_bias), (k, k_weight, k_bias)):
        kind, over = norm.split("_", 1)
        hidden = fp32(x).flatten(2) if over == "across_heads" else fp32(x)
        hidden = affine(normalize(hidden, kind, eps), weight, bias).view(x.shape)
        if rotation is not None:
            stop = start + rotation[0].shape[0]
            turned = rotate(hidden[:, start:stop], *rotation, interleaved)
            hidden = torch.cat([hidden[:, :start], turned, hidden[:, stop:]], dim=1)
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
    """Tokens (B, f, h, w, C*p*q*r) of latents (B, C, f*p, h*q, w*r); embedded (B, f, h, w, d).

    patch_size (p, q, r). A token's values are ordered (C, p, q, r), as the rows of a convolution's
    kernel are, or (p, q, r, C) where not `channels_first`. With weight (d, C*p*q*r) and bias (d,),
    latents are first rounded to the weight's dtype, which the tokens have.
    """
    p, q, r = patch_size
    batch, channels, frames, height, width = latents.shape
    x = latents.view(batch, channels, frames // p, p, height // q, q, width // r, r)
    order = (0, 2, 4, 6, 1, 3, 5, 7) if channels_first else (0, 2, 4, 6, 3, 5, 7, 1)
    tokens = x.permute(order).flatten(4)
    if weight is None:
        return tokens.contiguous()
    tokens = fp32(tokens.to(weight.dtype)) @ fp32(weight).T
    return affine(tokens, None, bias).to(weight.dtype)


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
    """Latents (B, C, f*p, h*q, w*r) of tokens (B, f, h, w, C*p*q*r): the inverse of `patchify`.

    With weight (C*p*q*r, d) and bias the tokens (B, f, h, w, d) pass through the head first: norm
    ("layer" or "rms"), scale and shift as in `norm_modulate`, then the product.
    """
    if weight is not None:
        hidden = fp32(tokens) if norm is None else normalize(fp32(tokens), norm, eps)
        hidden = modulate(affine(hidden, norm_weight, norm_bias), scale, shift)
        tokens = affine(hidden @ fp32(weight).T, None, bias).to(tokens.dtype)
    batch, f, h, w, _ = tokens.shape
    p, q, r = patch_size
    if channels_first:
        x = tokens.view(batch, f, h, w, -1, p, q, r).permute(0, 4, 1, 5, 2, 6, 3, 7)
    else:
        x = tokens.view(batch, f, h, w, p, q, r, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return x.reshape(batch, -1, f * p, h * q, w * r)


def guided_step(
    latents: Tensor,
    positive: Tensor,
    negative: Tensor | None,
    weights: Tensor,
    history: Sequence[Tensor] = (),
    *,
    guidance_scale: float = 1.0,
    rescale: float = 0.0,
) -> list[Tensor]:
    """Classifier-free guidance and the solver's update in fp32: one weighted sum for each output.

    latents (B, ...), fp32; predictions of the positive and the negative prompt alike in shape, any
    dtype (None: no guidance); history: up to 4 tensors like latents. weights fp32, on the device,
    (outputs, 2 + len(history)): what latents, the guided prediction and the history count in each
    of up to 3 outputs. Euler is [[1, delta]]; a step of UniPC gives the new latents, the corrected
    ones and the clean prediction. `rescale` in 0..1 pulls the guided prediction's deviation in each
    sample towards the positive one's (Lin et al., https://arxiv.org/abs/2305.08891). A guided
    prediction that is constant but for rounding has no deviation to pull, and stays as it is.
    """
    guided = fp32(positive)
    if negative is not None:
        guided = fp32(negative) + guidance_scale * (fp32(positive) - fp32(negative))
    if rescale:
        axes = tuple(range(1, guided.dim()))
        wanted = fp32(positive).var(axes, correction=0, keepdim=True)
        found, mean = torch.var_mean(guided, axes, correction=0, keepdim=True)
        constant = found <= (LEAST_DEVIATION * mean).square()
        ratio = torch.where(constant, 1.0, (wanted / found).sqrt())
        guided = guided * (rescale * ratio + (1 - rescale))
    terms = torch.stack([latents, guided, *history])
    return list(torch.tensordot(weights, terms, dims=1).unbind())


def norm_silu(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    norm: str = "rms",
    groups: int = 32,
    eps: float = 1e-6,
    padding: Sequence[int] = (0, 0, 0),
    before: Tensor | None = None,
    repeat_first: bool = False,
) -> Tensor:
    """`silu(norm(x))` padded for a causal 3D convolution, channels-last, in the dtype of `x`.

    x (B, C, F, H, W); weight, bias (C,). norm "rms" over the channels of each pixel (Wan's, whose
    eps of 1e-24 keeps zero pixels zero), or "group" over the pixels and channels of each of
    `groups` groups. padding (t, h, w): t frames before the first, h rows and w columns on either
    side, zeros but for the frames before, which are `before` (B, C, t, H, W), finished features of
    the last call, or the first frame again where `repeat_first`. Returns (B, C, t+F, H+2h, W+2w).
    """
    time, rows, columns = padding
    if norm == "rms":
        hidden = normalize(fp32(x).movedim(1, -1), norm, eps)
    else:
        grouped = fp32(x).unflatten(1, (groups, -1)).flatten(2)
        grouped = normalize(grouped, "layer", eps)
        hidden = grouped.view(x.shape).movedim(1, -1)
    hidden = torch.nn.functional.silu(affine(hidden, weight, bias)).movedim(-1, 1).to(x.dtype)
    if before is None and repeat_first:
        before = hidden[:, :, :1].expand(-1, -1, time, -1, -1)
    elif before is None:
        before = hidden.new_zeros(*hidden.shape[:2], time, *hidden.shape[3:])
    hidden = torch.cat([before.to(x.dtype), hidden], dim=2)
    hidden = torch.nn.functional.pad(hidden, (columns, columns, rows, rows))
    return hidden.contiguous(memory_format=torch.channels_last_3d)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """`softmax(query @ key^T * scale + bias) @ value`, in the dtype of `query`.

    query (B, N, L, D), key and value (B, N, S, D); bias of the keys (1|B, 1|N, 1, S): numbers, -inf
    to mask, or bool, True where a key takes part. scale: 1 / sqrt(D) by default. A query without
    any key gets zeros.
    """
    scale = check_attention(query, key, value, bias, scale)
    scores = fp32(query) @ fp32(key).mT * scale
    if bias is not None:
        scores = scores + added_to_scores(bias)
    return (softmax_or_zero(scores) @ fp32(value)).to(query.dtype)


def softmax_or_zero(scores: Tensor) -> Tensor:
    """Softmax over the last axis; zeros where every score is -inf."""
    masked = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(masked, 0.0).softmax(dim=-1).masked_fill(masked, 0.0)


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: TileMask, *, scale: float | None = None
) -> Tensor:
    """Attention in which a tile of tokens sees the tiles that `tiles` lists for it, and no other.

    query, key and value (B, N, L, D) of the same tokens. See `sliding_tiles` and `tile_mask`.
    """
    scale = check_attention(query, key, value, None, scale)
    check_tiles(query, key, tiles)
    scores = fp32(query) @ fp32(key).mT * scale
    scores = scores.masked_fill(~tiles.dense(), -torch.inf)
    return (softmax_or_zero(scores) @ fp32(value)).to(query.dtype)


def quantized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float | None = None,
    to: str = "int8",
) -> Tensor:
    """Attention of 8-bit queries and keys ("int8" or "fp8"), and with "fp8" of 8-bit values too.

    Keys are smoothed first: their mean over the tokens adds the same to all scores of a query, so
    it is left out (SageAttention, arXiv 2410.02367). A scale for each query, for `KEY_BLOCK` keys,
    and for each channel of the values.
    """
    scale = check_attention(query, key, value, bias, scale)
    key = fp32(key)
    key = key - key.mean(dim=2, keepdim=True) if key.shape[2] else key
    blocks = torch.nn.functional.pad(key, (0, 0, 0, -key.shape[2] % KEY_BLOCK))
    blocks = blocks.unflatten(2, (-1, KEY_BLOCK)).flatten(3)
    key = dequantize(quantize_tokens(blocks, to)).view(*key.shape[:2], -1, key.shape[3])
    key = key[:, :, : value.shape[2]]
    out_dtype, query = query.dtype, dequantize(quantize_tokens(query, to))
    if to == "fp8" and value.shape[2]:
        value = dequantize(quantize_tokens(value.mT, to)).mT
    out = attention(query, key.to(query.dtype), value.to(query.dtype), bias, scale=scale)
    return out.to(out_dtype)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`gelu(x @ weight^T + bias)`, the tanh form, in the dtype of `x`.

    x (..., K), weight (M, K), bias (M,); returns (..., M).
    """
    check_linear(x, weight, bias)
    hidden = fp32(x) @ fp32(weight).mT
    hidden = hidden if bias is None else hidden + fp32(bias)
    return torch.nn.functional.gelu(hidden, approximate="tanh").to(x.dtype)


def quantized_linear(
    x: Tensor | Quantized,
    weight: Quantized,
    bias: Tensor | None = None,
    *,
    gelu: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`x @ weight^T + bias` of 8-bit factors, then tanh-GELU if `gelu`; in `dtype`.

    x (..., K): quantized a token, as `norm_modulate` gives it, or a tensor that is quantized here
    to the weight's format. weight: `quantize_tokens` of (M, K), so a scale for each output channel;
    bias (M,). dtype: that of an unquantized x by default, otherwise bfloat16.
    """
    dtype = check_quantized_linear(x, weight, bias, dtype)
    x = x if isinstance(x, Quantized) else quantize_tokens(x, format_of(weight))
    hidden = dequantize(x) @ dequantize(weight).mT
    hidden = hidden if bias is None else hidden + fp32(bias)
    hidden = torch.nn.functional.gelu(hidden, approximate="tanh") if gelu else hidden
    return hidden.to(dtype)
