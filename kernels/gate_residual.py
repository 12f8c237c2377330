"""`x + gate * y` in one pass; the gate per sample, per frame or per token."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_broadcast, check_shape, check_tensors
from ._compilations import ARCHES, Compilation, record
from ._layout import token_axes, unravel
from ._operator import operator
from ._triton import ceil_div, launch, power_of_2, tl, triton


class Tile(NamedTuple):
    """Tokens and channels of a program, and its warps."""

    rows: int
    channels: int
    warps: int


def tiles(channels: int) -> tuple[Tile, ...]:
    """Those worth trying, the default first: 16 values a thread, no channels masked if possible."""
    whole = channels & -channels  # the largest power of two that divides
    block = min(whole if whole >= 128 else power_of_2(channels), 1024)
    rows = min(max(2048 // block, 1), 16)
    warps = max(rows * block // 512, 1)
    return Tile(rows, block, warps), Tile(2 * rows, block, warps), Tile(rows, block, 2 * warps)


@triton.jit(do_not_specialize=["n1", "n2", "inner"])
def _gate_residual(
    x, y, gate, out, n1, n2, inner, channels,
    x0, x1, x2, x3, xc, y0, y1, y2, y3, yc, g0, g1, g2, g3, gc,
    SHARED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    parts, blocks = tl.cdiv(channels, BLOCK), tl.cdiv(inner, ROWS)
    c = tl.program_id(0) % parts * BLOCK + tl.arange(0, BLOCK)[None, :]
    block = tl.program_id(0) // parts
    group = block // blocks
    i0, i1, i2 = unravel(group, n1, n2)
    i3 = (block % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    m3 = i3 * 0 if SHARED else i3
    channel = c < channels
    mask = (i3 < inner) & channel
    value = tl.load(
        x + (i0 * x0 + i1 * x1 + i2 * x2 + i3 * x3) + c * xc, mask, 0.0, cache_modifier=".cg"
    )
    branch = tl.load(
        y + (i0 * y0 + i1 * y1 + i2 * y2 + i3 * y3) + c * yc, mask, 0.0, cache_modifier=".cg"
    )
    branch = branch.to(tl.float32)
    if gate is not None:
        at = gate + (i0 * g0 + i1 * g1 + i2 * g2 + m3 * g3) + c * gc
        branch *= tl.load(at, channel if SHARED else mask, 0.0).to(tl.float32)
    value = (value.to(tl.float32) + branch).to(out.dtype.element_ty)
    row = (group.to(tl.int64) * inner + i3) * channels
    tl.store(out + row + c, value, mask)


def run(x: Tensor, y: Tensor, gate: Tensor | None, tile: Tile | None = None) -> Tensor:
    """Launch."""
    out = x.new_empty(x.shape)
    if x.numel() == 0:
        return out
    sizes, strides = token_axes((x, y, gate), x.shape[:-1])
    tile = tile or tiles(x.shape[-1])[0]
    parts = ceil_div(x.shape[-1], tile.channels)
    launch(
        _gate_residual,
        (prod(sizes[:3]) * ceil_div(sizes[3], tile.rows) * parts,),
        *(x, y, gate, out, *sizes[1:], x.shape[-1]),
        *(stride for own in strides for stride in own),
        SHARED=strides[2][3] == 0,
        ROWS=tile.rows,
        BLOCK=tile.channels,
        num_warps=tile.warps,
    )
    return out


def _plain(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    return torch_backend.gate_residual(x, y, gate).contiguous()


def _fake(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


_op = operator(
    "gate_residual",
    "(Tensor x, Tensor y, Tensor? gate) -> Tensor",
    launch=run,
    plain=_plain,
    fake=_fake,
)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None = None) -> Tensor:
    """As `reference.gate_residual`; raises `ValueError` naming what does not fit."""
    check_tensors(x=x, y=y, gate=gate)
    if x.dim() < 1:
        raise ValueError("x has no axes; its last must be the channels")
    check_shape("y", y, x.shape)
    check_broadcast("gate", gate, x.shape)
    return _op(x, y, gate)


def compilations() -> Iterator[Compilation]:
    """Widths of Wan 1.3B and 14B; every dtype and tile."""
    for channels, dtype in product((1536, 5120), DTYPES):
        x = torch.empty(1, 32760, channels, dtype=dtype, device="meta")
        gate = torch.empty(1, 1, channels, device="meta")
        for tile in tiles(channels):
            yield from record(
                "gate_residual",
                f"{str(dtype)[6:]} C={channels} rows={tile.rows} warps={tile.warps}",
                partial(run, x, x, gate, tile),
                default=ARCHES if (dtype, tile) == (torch.bfloat16, tiles(channels)[0]) else (),
            )
