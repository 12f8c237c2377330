"""Rows to 8 bits with their scales, in one pass.

Shape legend: B batch, N heads, L rows, D channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._softmax import gather
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .formats import FORMATS, KEY_BLOCK, LEAST_PEAK, Quantized


@triton.jit
def _quantize_rows(
    out, out_scale, x, mean, x_b, x_n, x_l, heads, rows, limit, least_peak,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    SHARED: tl.constexpr, ROUND: tl.constexpr,
):  # fmt: skip
    """ROWS rows of a head, less the mean, to 8 bits: a scale for each row, or one if SHARED."""
    pair = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_D)
    x += pair // heads * x_b + pair % heads * x_n
    inside = (row[:, None] < rows) & (channel[None, :] < D)
    value = gather(x, row, row < rows, x_l, D, BLOCK_D, True).to(tl.float32)
    if mean is not None:
        shift = tl.load(mean + pair * D + channel, mask=channel < D, other=0.0)
        value = tl.where(inside, value - shift[None, :], 0.0)
    peak = tl.maximum(tl.max(tl.abs(value), 1), least_peak)
    if SHARED:
        peak = tl.max(peak, 0)
        value *= limit / peak
        tl.store(out_scale + pair * tl.num_programs(0) + tl.program_id(0), peak / limit)
    else:
        value *= (limit / peak)[:, None]
        tl.store(out_scale + pair * rows + row, peak / limit, mask=row < rows)
    value = tl.minimum(tl.maximum(value, -limit), limit)
    if ROUND:  # to nearest even: a sum near 1.5 * 2^23 has no bits for a fraction
        value = (value + 12582912.0) - 12582912.0
    pointers = out + (pair * rows + row[:, None]) * D + channel[None, :]
    tl.store(pointers, value.to(out.dtype.element_ty), mask=inside)


def quantize_heads(x: Tensor, mean: Tensor | None, to: str, shared: bool) -> tuple[Tensor, Tensor]:
    """x (B, N, L, D), less `mean` (B, N, D), as 8-bit values and a scale for each row.

    If `shared`, one scale for `KEY_BLOCK` rows.
    """
    return _quantize(x, mean, to, shared, KEY_BLOCK)


def quantize_rows(x: Tensor, to: str) -> Quantized:
    """`formats.quantize_tokens` of x (..., C), whose channels are contiguous."""
    flat = x.reshape(1, 1, -1, x.shape[-1])
    values, scales = _quantize(flat, None, to, False, max(1, 4096 // power_of_2(x.shape[-1])))
    return Quantized(values.view(x.shape), scales.view(*x.shape[:-1], 1))


def _quantize(
    x: Tensor, mean: Tensor | None, to: str, shared: bool, block: int
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, channels = x.shape
    dtype, limit = FORMATS[to]
    blocks = ceil_div(rows, block)
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = x.new_empty(batch, heads, blocks if shared else rows, dtype=torch.float32)
    if x.numel() == 0:
        return values, scales
    launch(
        _quantize_rows,
        (blocks, batch * heads),
        *(values, scales, x, mean, *x.stride()[:3], heads, rows, limit, LEAST_PEAK),
        D=channels,
        BLOCK_D=max(16, power_of_2(channels)),
        ROWS=block,
        SHARED=shared,
        ROUND=to == "int8",
        num_warps=8,
    )
    return values, scales
