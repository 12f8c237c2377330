"""Norm over the channels, then scale and shift; optionally the gated residual before it and the
quantization after it, all in one pass.

A token's channels fit in a program's registers, so each value is read once and the variance is that
of centred values. Tokens that share their modulation are taken several at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from ._checks import (
    DTYPES,
    check_broadcast,
    check_eps,
    check_fp8,
    check_one_of,
    check_shape,
    check_tensors,
)
from ._compilations import ARCHES, Compilation, record
from ._layout import dense, token_axes, unravel
from ._operator import operator
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .formats import FORMATS, LEAST_PEAK, Quantized

NORMS = ("layer", "rms")
MAX_CHANNELS = 16384


class Tile(NamedTuple):
    """Tokens of a program, and its warps."""

    rows: int
    warps: int


def tiles(block: int) -> tuple[Tile, ...]:
    """Those worth trying for `block` channels, the default first: 16 values a thread, or 32."""
    if block >= 2048:
        warps = min(block // 512, 8 if block < MAX_CHANNELS else 16)
        return Tile(1, warps), Tile(1, min(2 * warps, 16)), Tile(2, warps)
    rows = min(2048 // block, 16)
    warps = max(rows * block // 512, 1)
    return Tile(rows, warps), Tile(1, max(block // 512, 1)), Tile(rows, 2 * warps)


@triton.jit(do_not_specialize=["n1", "n2", "inner"])
def _norm_modulate(
    x, y, gate, scale, shift, weight, bias, new_x, out, out_scale,
    n1, n2, inner, channels, eps, least_peak,
    x0, x1, x2, x3, xc, y0, y1, y2, y3, yc, g0, g1, g2, g3, gc,
    a0, a1, a2, a3, ac, b0, b1, b2, b3, bc,
    RMS: tl.constexpr, LIMIT: tl.constexpr, ROUND: tl.constexpr, SHARED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(inner, ROWS)
    group = tl.program_id(0) // blocks
    i0, i1, i2 = unravel(group, n1, n2)
    i3 = (tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    m3 = i3 * 0 if SHARED else i3
    token = group.to(tl.int64) * inner + i3
    row = token * channels
    c = tl.arange(0, BLOCK)[None, :]
    channel = c < channels
    mask = (i3 < inner) & channel
    m_mask = channel if SHARED else mask

    # Tokens are read once, modulation again and again: it has the first-level cache to itself.
    value = tl.load(
        x + (i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3) + c * xc, mask, 0.0, cache_modifier=".cg"
    )
    value = value.to(tl.float32)
    if y is not None:
        branch = tl.load(
            y + (i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3) + c * yc, mask, 0.0, cache_modifier=".cg"
        )
        branch = branch.to(tl.float32)
        if gate is not None:
            at = gate + (i0 * g0 + i1 * g1 + i2 * g2 + m3 * g3) + c * gc
            branch *= tl.load(at, m_mask, 0.0).to(tl.float32)
        rounded = (value + branch).to(new_x.dtype.element_ty)
        tl.store(new_x + row + c, rounded, mask)
        value = rounded.to(tl.float32)

    if not RMS:
        mean = tl.sum(value, 1) / channels
        value = tl.where(mask, value - mean[:, None], 0.0)
    variance = tl.sum(value * value, 1) / channels
    value *= tl.rsqrt(variance + eps)[:, None]

    if weight is not None:
        value *= tl.load(weight + c, channel, 0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + c, channel, 0.0).to(tl.float32)
    if scale is not None:
        at = scale + (i0 * a0 + i1 * a1 + i2 * a2 + m3 * a3) + c * ac
        value *= 1 + tl.load(at, m_mask, 0.0).to(tl.float32)
    if shift is not None:
        at = shift + (i0 * b0 + i1 * b1 + i2 * b2 + m3 * b3) + c * bc
        value += tl.load(at, m_mask, 0.0).to(tl.float32)

    if LIMIT > 0:
        peak = tl.maximum(tl.max(tl.abs(value), 1), least_peak)[:, None]
        tl.store(out_scale + token, peak / LIMIT, i3 < inner)
        value = tl.minimum(tl.maximum(value * (LIMIT / peak), -LIMIT), LIMIT)
        if ROUND:  # to nearest even: a sum near 1.5 * 2^23 has no bits for a fraction
            value = (value + 12582912.0) - 12582912.0
    tl.store(out + row + c, value.to(out.dtype.element_ty), mask)


def run(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: str,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    gate: Tensor | None,
    quantize: str | None,
    tile: Tile | None = None,
) -> list[Tensor]:
    """Launch; outputs as `_fake` has them."""
    outputs = _fake(x, scale, shift, norm, weight, bias, eps, residual, gate, quantize)
    if x.numel() == 0:
        return outputs
    check_fp8(quantize, x.device)
    new_x = outputs[0] if residual is not None else None
    out, out_scale = outputs[-2:] if quantize else (outputs[-1], None)
    sizes, strides = token_axes((x, residual, gate, scale, shift), x.shape[:-1])
    block = power_of_2(x.shape[-1])
    tile = tile or tiles(block)[0]
    weight, bias = dense(weight, bias)
    launch(
        _norm_modulate,
        (prod(sizes[:3]) * ceil_div(sizes[3], tile.rows),),
        *(x, residual, gate, scale, shift, weight, bias, new_x, out, out_scale),
        *(*sizes[1:], x.shape[-1], eps, LEAST_PEAK),
        *(stride for own in strides for stride in own),
        RMS=norm == "rms",
        LIMIT=FORMATS[quantize][1] if quantize else 0.0,
        ROUND=quantize == "int8",
        SHARED=not any(own[3] for own in strides[2:]),
        ROWS=tile.rows,
        BLOCK=block,
        num_warps=tile.warps,
    )
    return outputs


def _plain(x, scale, shift, norm, weight, bias, eps, residual, gate, quantize):
    result = torch_backend.norm_modulate(
        x, scale, shift, norm=norm, weight=weight, bias=bias, eps=eps,
        residual=residual, gate=gate, quantize=quantize,
    )  # fmt: skip
    first, last = ([], result) if residual is None else ([result[0]], result[1])
    outputs = [*first, *last] if quantize else [*first, last]
    return [output.contiguous() for output in outputs]


def _fake(x, scale, shift, norm, weight, bias, eps, residual, gate, quantize):
    outputs = [] if residual is None else [x.new_empty(x.shape)]
    if quantize is None:
        return [*outputs, x.new_empty(x.shape)]
    values = x.new_empty(x.shape, dtype=FORMATS[quantize][0])
    return [*outputs, values, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)]


_op = operator(
    "norm_modulate",
    "(Tensor x, Tensor? scale, Tensor? shift, str norm, Tensor? weight, Tensor? bias, float eps,"
    " Tensor? residual, Tensor? gate, str? quantize) -> Tensor[]",
    launch=run,
    plain=_plain,
    fake=_fake,
)


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
    """As `reference.norm_modulate`; raises `ValueError` naming what does not fit.

    Up to 16384 channels; leading axes of any strides that merge to four or fewer.
    """
    check_one_of("norm", norm, NORMS)
    check_one_of("quantize", quantize, (None, *FORMATS))
    check_eps(eps)
    check_tensors(
        x=x, scale=scale, shift=shift, weight=weight, bias=bias, residual=residual, gate=gate
    )
    if x.dim() < 1 or not 1 <= x.shape[-1] <= MAX_CHANNELS:
        raise ValueError(f"x has shape {tuple(x.shape)}; 1 to {MAX_CHANNELS} channels, last, work")
    if gate is not None and residual is None:
        raise ValueError("gate is given without residual; it scales what is added to x")
    check_shape("residual", residual, x.shape)
    for name, vector in (("weight", weight), ("bias", bias)):
        check_shape(name, vector, x.shape[-1:])
    for name, vector in (("scale", scale), ("shift", shift), ("gate", gate)):
        check_broadcast(name, vector, x.shape)
    outputs = _op(x, scale, shift, norm, weight, bias, eps, residual, gate, quantize)
    result = Quantized(*outputs[-2:]) if quantize else outputs[-1]
    return result if residual is None else (outputs[0], result)


def compilations() -> Iterator[Compilation]:
    """Widths of Wan 1.3B and 14B and of HunyuanVideo; every dtype, variant and tile."""
    for channels, dtype in product((1536, 5120, 3072), DTYPES):
        x = torch.empty(1, 32760, channels, dtype=dtype, device="meta")
        mod = torch.empty(1, 1, channels, device="meta")
        variants = {
            "layer": ("layer", None, None, 1e-6, None, None, None),
            "layer+residual": ("layer", None, None, 1e-6, x, mod, None),
            "rms+residual": ("rms", None, None, 1e-6, x, mod, None),
            "layer+residual+fp8": ("layer", None, None, 1e-6, x, mod, "fp8"),
            "layer+residual+int8": ("layer", None, None, 1e-6, x, mod, "int8"),
        }
        for (name, variant), tile in product(variants.items(), tiles(power_of_2(channels))):
            first = tile == tiles(power_of_2(channels))[0]
            yield from record(
                "norm_modulate",
                f"{str(dtype)[6:]} {name} C={channels} rows={tile.rows} warps={tile.warps}",
                partial(run, x, mod, mod, *variant, tile=tile),
                default=ARCHES if first and dtype == torch.bfloat16 else (),
                arches=ARCHES[1:] if name.endswith("fp8") else ARCHES,  # sm_80 has no fp8
            )
