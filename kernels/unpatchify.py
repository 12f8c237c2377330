"""Tokens to latents; the head is one kernel of norm, modulation and a product that scatters its
patches as it writes them. Tokens are read twice, for their statistics and for the product.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import prod

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_broadcast, check_eps, check_one_of, check_shape, check_tensors
from ._compilations import WGMMA, Compilation, defaults, record
from ._layout import dense, token_axes, unravel
from ._operator import operator
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .patchify import Tile, check_patch, patch_offset

NORMS = (None, "layer", "rms")


def tiles(dtype: torch.dtype) -> tuple[Tile, ...]:
    """Those worth trying for a product in `dtype`, the default first."""
    if dtype == torch.float32:  # whose products take registers, not tensor cores
        return Tile(64, 64, 32, 8, 1), Tile(32, 64, 32, 8, 1)
    return Tile(64, 64, 64, 8, 1), Tile(64, 64, 64, 4, 2), Tile(128, 64, 64, 8, 1)


@triton.jit(do_not_specialize=["n1", "n2", "inner", "groups", "f", "h", "w", "columns"])
def _unpatchify(
    tokens, weight, bias, scale, shift, norm_weight, norm_bias, out,
    n1, n2, inner, groups, f, h, w, width, channels, columns, eps,
    x0, x1, x2, x3, xc, a0, a1, a2, a3, ac, b0, b1, b2, b3, bc, wn, wk,
    NORM: tl.constexpr, SHARED: tl.constexpr,
    P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    parts, blocks = tl.cdiv(columns, N), tl.cdiv(inner, M)
    n = tl.program_id(0) % parts * N + tl.arange(0, N)[None, :]
    block = tl.program_id(0) // parts
    group = block // blocks
    i0, i1, i2 = unravel(group, n1, n2)
    i3 = (block % blocks * M).to(tl.int64)
    # Offsets within the tile take 32 bits, which registers are saved by; where it starts, 64.
    m = tl.arange(0, M)[:, None]
    mod = m * 0 if SHARED else m
    within = m < inner - i3
    tokens += i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3
    if scale is not None:
        scale += i0 * a0 + i1 * a1 + i2 * a2 + i3 * a3
    if shift is not None:
        shift += i0 * b0 + i1 * b1 + i2 * b2 + i3 * b3

    if weight is None:
        result = tl.load(tokens + (m * x3 + n * xc), within & (n < columns), 0.0)
    else:
        if NORM == "layer":
            mean, squares = tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32)
            for first in range(0, width, K):  # moments of blocks, merged exactly (Chan et al.)
                k = first + tl.arange(0, K)[None, :]
                value = tl.load(tokens + (m * x3 + k * xc), within & (k < width), 0.0).to(
                    tl.float32
                )
                count = tl.minimum(width - first, K).to(tl.float32)
                own = tl.sum(value, 1) / count
                centred = tl.where(k < width, value - own[:, None], 0.0)
                delta, seen = own - mean, count + first
                squares += tl.sum(centred * centred, 1) + delta * delta * (count * first / seen)
                mean += delta * (count / seen)
            factor = tl.rsqrt(squares / width + eps)[:, None]
        elif NORM == "rms":
            squares = tl.zeros((M,), tl.float32)
            for first in range(0, width, K):
                k = first + tl.arange(0, K)[None, :]
                value = tl.load(tokens + (m * x3 + k * xc), within & (k < width), 0.0).to(
                    tl.float32
                )
                squares += tl.sum(value * value, 1)
            factor = tl.rsqrt(squares / width + eps)[:, None]
        result = tl.zeros((M, N), tl.float32)
        for first in range(0, width, K):
            k = first + tl.arange(0, K)
            row = k[None, :]
            column = row < width
            value = tl.load(tokens + (m * x3 + row * xc), within & column, 0.0).to(tl.float32)
            if NORM == "layer":
                value = (value - mean[:, None]) * factor
            elif NORM == "rms":
                value = value * factor
            if norm_weight is not None:
                value *= tl.load(norm_weight + row, column, 0.0).to(tl.float32)
            if norm_bias is not None:
                value += tl.load(norm_bias + row, column, 0.0).to(tl.float32)
            mask = column if SHARED else within & column
            if scale is not None:
                value *= 1 + tl.load(scale + (mod * a3 + row * ac), mask, 0.0).to(tl.float32)
            if shift is not None:
                value += tl.load(shift + (mod * b3 + row * bc), mask, 0.0).to(tl.float32)
            mask = (k[:, None] < width) & (n < columns)
            rows = tl.load(weight + (n * wn + k[:, None] * wk), mask, 0.0)
            # Columns past the width multiply rows of zeros.
            value = value.to(tokens.dtype.element_ty)
            rows = rows.to(tokens.dtype.element_ty)
            result = tl.dot(value, rows, result, input_precision="ieee")
        if bias is not None:
            result += tl.load(bias + n, n < columns, 0.0).to(tl.float32)

    t = group % groups * inner + i3.to(tl.int32) + m  # the token's place in its sample
    sh, sf = w * R, w * R * h * Q
    sc = sf * f * P
    out += (group // groups).to(tl.int64) * channels * sc
    start = t // w // h * (P * sf) + t // w % h * (Q * sh) + t % w * R
    place = patch_offset(n, channels, sc, sf, sh, 1, P, Q, R, CHANNELS_FIRST)
    tl.store(out + (start + place), result.to(out.dtype.element_ty), within & (n < columns))


def run(
    tokens: Tensor,
    patch_size: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: str | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    channels_first: bool,
    tile: Tile | None = None,
) -> Tensor:
    """Launch."""
    out = _fake(tokens, patch_size, weight)
    if out.numel() == 0:
        return out
    batch, f, h, w, width = tokens.shape
    columns = width if weight is None else weight.shape[0]
    tile = tile or tiles(tokens.dtype)[0]
    tile = tile._replace(columns=max(16, min(power_of_2(columns), tile.columns)))
    bias, norm_weight, norm_bias = dense(bias, norm_weight, norm_bias)
    sizes, strides = token_axes((tokens, scale, shift), tokens.shape[:-1], keep_first=True)
    blocks = prod(sizes[:3]) * ceil_div(sizes[3], tile.rows)
    launch(
        _unpatchify,
        (blocks * ceil_div(columns, tile.columns),),
        *(tokens, weight, bias, scale, shift, norm_weight, norm_bias, out),
        *(*sizes[1:], prod(sizes[:3]) // batch, f, h, w, width, out.shape[1], columns, eps),
        *(stride for own in strides for stride in own),
        *((0, 0) if weight is None else weight.stride()),
        NORM=norm,
        SHARED=not any(own[3] for own in strides[1:]),
        **dict(zip("PQR", patch_size, strict=True)),
        CHANNELS_FIRST=channels_first,
        **dict(zip("MNK", tile[:3], strict=True)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def _plain(
    tokens, patch_size, weight, bias, scale, shift, norm, norm_weight, norm_bias, eps,
    channels_first,
):  # fmt: skip
    latents = torch_backend.unpatchify(
        tokens, patch_size, weight, bias, scale=scale, shift=shift, norm=norm,
        norm_weight=norm_weight, norm_bias=norm_bias, eps=eps, channels_first=channels_first,
    )  # fmt: skip
    return latents.clone(memory_format=torch.contiguous_format)


def _fake(tokens, patch_size, weight, *rest):
    batch, f, h, w, width = tokens.shape
    p, q, r = patch_size
    channels = (width if weight is None else weight.shape[0]) // (p * q * r)
    return tokens.new_empty(batch, channels, f * p, h * q, w * r)


_op = operator(
    "unpatchify",
    "(Tensor tokens, int[] patch_size, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift,"
    " str? norm, Tensor? norm_weight, Tensor? norm_bias, float eps, bool channels_first) -> Tensor",
    launch=run,
    plain=_plain,
    fake=_fake,
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
    """As `reference.unpatchify`; raises `ValueError` naming what does not fit."""
    check_one_of("norm", norm, NORMS)
    check_eps(eps)
    check_tensors(
        tokens=tokens, weight=weight, bias=bias, scale=scale, shift=shift, norm_weight=norm_weight,
        norm_bias=norm_bias,
    )  # fmt: skip
    patch_size = check_patch(patch_size)
    if tokens.dim() != 5:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; (B, f, h, w, d) works")
    head = {"bias": bias, "scale": scale, "shift": shift, "norm": norm, "norm_weight": norm_weight,
            "norm_bias": norm_bias}  # fmt: skip
    given = [name for name, value in head.items() if value is not None]
    if weight is None and given:
        raise ValueError(f"{', '.join(given)} given without weight; the head needs one")
    width = tokens.shape[-1]
    if weight is not None and (weight.dim() != 2 or weight.shape[1] != width):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; (C*p*q*r, {width}) works")
    columns = width if weight is None else weight.shape[0]
    if columns % prod(patch_size):
        raise ValueError(f"{columns} values do not fill patches of {tuple(patch_size)}")
    check_shape("bias", bias, (columns,))
    for name, vector in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape(name, vector, (width,))
    for name, vector in (("scale", scale), ("shift", shift)):
        check_broadcast(name, vector, tokens.shape)
    return _op(
        tokens, patch_size, weight, bias, scale, shift, norm, norm_weight, norm_bias, eps,
        channels_first,
    )  # fmt: skip


def compilations() -> Iterator[Compilation]:
    """Heads of Wan 1.3B and 14B at patches of (1, 2, 2); every dtype and tile."""
    for width, dtype in product((1536, 5120), DTYPES):
        mod = torch.empty(1, 1, 1, 1, width, device="meta")
        tokens = mod.new_empty(1, 21, 30, 52, width, dtype=dtype)
        weight, bias = tokens.new_empty(64, width), mod.new_empty(64)
        norm = (mod, mod, "layer", None, None, 1e-6)
        for index, tile in enumerate(tiles(dtype)):
            yield from record(
                "unpatchify",
                f"{str(dtype)[6:]} d={width} {tile}",
                partial(run, tokens, [1, 2, 2], weight, bias, *norm, False, tile),
                default=defaults(dtype) if index == 0 else (),
                needs=frozenset() if dtype == torch.float32 else WGMMA,
            )
