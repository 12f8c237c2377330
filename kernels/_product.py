"""A persistent matrix product with the epilogue inside: scales, bias, tanh-GELU, one rounding.

One program a multiprocessor walks the tiles of the output, so that a tile's epilogue overlaps the
loads of the next. Grouped order keeps the factors in L2.

Shape legend: x (M, K), weight (N, K), out (M, N).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._chip import describable, describe, multiprocessors
from ._triton import ceil_div, launch, tl, triton

GROUP = 8  # rows of tiles that share columns of the weight


class Config(NamedTuple):
    """One way to launch: the output tile, the step along K, warps, pipeline depth."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    descriptors: bool = False

    def __str__(self) -> str:
        extra = "-desc" * self.descriptors
        sizes = f"m{self.block_m}n{self.block_n}k{self.block_k}"
        return f"{sizes}w{self.num_warps}s{self.num_stages}{extra}"


def configs(major: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """Those worth trying for factors of `dtype` on a chip of compute capability `major`, the
    default first."""
    if dtype.itemsize == 4:
        return (Config(64, 64, 32, 4, 2),)
    k = 128 // dtype.itemsize
    wide, narrow = Config(128, 256, k, 8, 3, True), Config(128, 128, k, 8, 4, True)
    if major == 10:  # wider tiles of 8 bits spill in the epilogue
        return (narrow,) if dtype.itemsize == 1 else (wide, narrow)
    if major == 9:
        first = (narrow, wide) if dtype == torch.int8 else (wide, narrow)  # wide int8 spills a bit
        return (*first, Config(256, 128, k, 8, 3, True), Config(128, 128, k, 8, 3))
    return (Config(128, 128, k // 2, 8, 3), Config(128, 64, k // 2, 4, 3))


@triton.jit
def _product(
    out, x, weight, bias, x_scale, weight_scale,
    x_row, weight_row, out_row, rows, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    GELU: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row_tiles = tl.cdiv(rows, BLOCK_M)
    column_tiles = tl.cdiv(columns, BLOCK_N)
    in_group = GROUP * column_tiles
    element = weight.dtype if DESCRIPTORS else weight.dtype.element_ty
    kind: tl.constexpr = tl.int32 if element == tl.int8 else tl.float32
    tiles = row_tiles * column_tiles
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        top = tile // in_group * GROUP
        height = min(row_tiles - top, GROUP)
        m = (top + tile % in_group % height) * BLOCK_M
        n = tile % in_group // height * BLOCK_N
        row = m + tl.arange(0, BLOCK_M)
        column = n + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], kind)
        for step in tl.range(0, tl.cdiv(depth, BLOCK_K)):
            k = step * BLOCK_K
            if DESCRIPTORS:
                left = x.load([m, k])
                right = weight.load([n, k])
            else:
                inner = k + tl.arange(0, BLOCK_K)
                left = tl.load(
                    x + row[:, None].to(tl.int64) * x_row + inner[None, :],
                    mask=(row[:, None] < rows) & (inner[None, :] < depth),
                    other=0.0,
                )
                right = tl.load(
                    weight + column[:, None].to(tl.int64) * weight_row + inner[None, :],
                    mask=(column[:, None] < columns) & (inner[None, :] < depth),
                    other=0.0,
                )
            acc = tl.dot(left, right.T, acc, input_precision=PRECISION, out_dtype=kind)
        result = acc.to(tl.float32)
        if x_scale is not None:
            result *= tl.load(x_scale + row, mask=row < rows, other=0.0)[:, None]
            result *= tl.load(weight_scale + column, mask=column < columns, other=0.0)[None, :]
        if bias is not None:
            added = tl.load(bias + column, mask=column < columns, other=0.0)
            result += added.to(tl.float32)[None, :]
        if GELU:  # 0.5 * x * (1 + tanh(u)) is x * sigmoid(2u)
            cubic = result + 0.044715 * result * result * result
            result *= tl.sigmoid(1.5957691216057308 * cubic)
        if DESCRIPTORS:
            out.store([m, n], result.to(out.dtype))
        else:
            tl.store(
                out + row[:, None].to(tl.int64) * out_row + column[None, :],
                result.to(out.dtype.element_ty),
                mask=(row[:, None] < rows) & (column[None, :] < columns),
            )


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    *,
    gelu: bool,
    config: Config,
    scales: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`gelu(x @ weight^T * scales + bias)` for x (..., K), weight (N, K), bias (N,); fp32 inside.

    scales: of the rows of x (..., 1) and of weight (N, 1), fp32. Channels must be contiguous.
    """
    flat = x.flatten(0, -2) if x.dim() > 1 else x[None]
    rows, columns, depth = flat.shape[0], *weight.shape
    out = torch.empty(rows, columns, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out.view(*x.shape[:-1], columns)
    descriptors = config.descriptors and depth > 0 and describable(flat, weight, out)
    blocks = [
        [config.block_m, config.block_k],
        [config.block_n, config.block_k],
        [config.block_m, config.block_n],
    ]
    left, right, target = describe((flat, weight, out), blocks, descriptors)
    tiles = ceil_div(rows, config.block_m) * ceil_div(columns, config.block_n)
    launch(
        _product,
        (min(tiles, multiprocessors(x.device)),),
        target,
        left,
        right,
        bias,
        *((None, None) if scales is None else (scale.contiguous() for scale in scales)),
        *(flat.stride(0), weight.stride(0), out.stride(0), rows, columns, depth),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        GROUP=GROUP,
        GELU=gelu,
        DESCRIPTORS=descriptors,
        PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out.view(*x.shape[:-1], columns)
