"""The online softmax that kernels of attention share, and the rows that it reads and writes.

That of FlashAttention-2 (Dao, 2023), kept in base 2.

Shape legend: B batch, N heads, L queries, S keys, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ._triton import tl, triton

LOG2_E = 1.4426950408889634  # written out in `bias_of_keys`: kernels see no globals


class Config(NamedTuple):
    """One way to launch: queries and keys a program holds at a time, warps, pipeline depth."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    warp_specialize: bool = False

    def __str__(self) -> str:
        extra = "-desc" * self.descriptors + "-ws" * self.warp_specialize
        return f"m{self.block_m}n{self.block_n}w{self.num_warps}s{self.num_stages}{extra}"


def fp32_config(head_dim: int) -> Config:
    """The tile of three TF32 products that spills least; none at head dims up to 64."""
    if head_dim > 64:
        return Config(16, 32, 4 if head_dim <= 128 else 8, 1)
    return Config(64, 16, 8, 1)


def empty_output(query: Tensor) -> Tensor:
    """(B, N, L, D) laid out as (B, L, N, D), so that the output projection reads it in place."""
    batch, heads, queries, head_dim = query.shape
    return query.new_empty(batch, queries, heads, head_dim).transpose(1, 2)


@triton.jit
def gather(
    source, row, inside, stride,
    D: tl.constexpr, BLOCK_D: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Rows (M,) of a head, (M, BLOCK_D): zeros beyond D, and where not `inside` (M,) if EDGE."""
    channel = tl.arange(0, BLOCK_D)
    pointers = source + row[:, None].to(tl.int64) * stride + channel[None, :]
    if EDGE:
        tile = tl.load(pointers, mask=inside[:, None] & (channel[None, :] < D), other=0.0)
    elif D < BLOCK_D:
        tile = tl.load(pointers, mask=channel[None, :] < D, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def scatter(out, row, inside, stride, acc, total, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write `acc / total` to rows (M,) of a head; zeros where every key was masked."""
    channel = tl.arange(0, BLOCK_D)
    pointers = out + row[:, None].to(tl.int64) * stride + channel[None, :]
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        pointers,
        result.to(out.dtype.element_ty),
        mask=inside[:, None] & (channel[None, :] < D),
    )


@triton.jit
def load_rows(
    source, batch, head, first, rows, stride_b, stride_n, stride_l,
    ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, DESCRIPTORS: tl.constexpr,
    EDGE: tl.constexpr,
):  # fmt: skip
    """Rows `first` and on of one head, (ROWS, BLOCK_D); zeros beyond D, and `rows` if EDGE."""
    if DESCRIPTORS:
        tile = source.load([batch, head, first, 0]).reshape(ROWS, BLOCK_D)
    else:
        row = first + tl.arange(0, ROWS)
        source += batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_n
        tile = gather(source, row, row < rows, stride_l, D, BLOCK_D, EDGE)
    return tile


@triton.jit
def bias_of_keys(
    bias, first, keys, BLOCK_N: tl.constexpr, BIASED: tl.constexpr, EDGE: tl.constexpr
):
    """What is added to scores of keys `first` and on, in base 2; -inf beyond `keys` if EDGE."""
    column = first + tl.arange(0, BLOCK_N)
    added = column * 0.0
    if EDGE:
        added = tl.where(column < keys, 0.0, float("-inf"))
    if BIASED:
        if EDGE:
            added = tl.load(bias + column, mask=column < keys, other=float("-inf"))
        else:
            added = tl.load(bias + column)
        added = added.to(tl.float32) * 1.4426950408889634
    return added


@triton.jit
def attend(
    acc, total, peak, query, key, value, scale, bias,
    BIASED: tl.constexpr, HEADROOM: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one tile of keys (BLOCK_N, D) and values (BLOCK_N, D) into the running softmax.

    `scale` (BLOCK_M,) of the scores and `bias` (BLOCK_N,), -inf where masked, are in base 2.
    `acc`, `total` and `peak` are the weighted values, the weights' sum and the largest score.
    Weights are at most 2**HEADROOM, which cancels in acc / total.
    """
    if query.dtype == tl.int8:
        # 1.5 * 2**23 as bits: adding an integer of up to 22 bits to it is converting it to float.
        magic = tl.full([query.shape[0], key.shape[0]], 0x4B400000, tl.int32)
        scores = tl.dot(query, key.T, magic, out_dtype=tl.int32).to(tl.float32, bitcast=True)
        scores -= 12582912.0
    else:
        scores = tl.dot(query, key.T, input_precision=PRECISION)
    if BIASED:
        scores = scores * scale[:, None] + bias[None, :]
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        # A row that has met no key yet has no peak to subtract: -inf - -inf would be NaN.
        origin = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(scores - (origin - HEADROOM)[:, None])
    else:
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
        origin = new_peak
        weights = tl.exp2(scores * scale[:, None] - (origin - HEADROOM)[:, None])
    keep = tl.exp2(peak - origin)
    total = total * keep + tl.sum(weights, 1)
    acc = tl.dot(weights.to(value.dtype), value, acc * keep[:, None], input_precision=PRECISION)
    return acc, total, new_peak
