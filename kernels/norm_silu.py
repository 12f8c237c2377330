"""RMSNorm or GroupNorm, SiLU, and the causal padding of a VAE's next convolution, in one pass.

Channels last: a pixel's channels are neighbours, and the output is what a convolution without
padding reads. GroupNorm's statistics span a whole sample, so they are a pass of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_eps, check_one_of, check_shape, check_tensors
from ._compilations import ARCHES, Compilation, record
from ._layout import dense
from ._moments import MAX_SPLITS, empty_parts, merge_moments
from ._operator import operator
from ._triton import ceil_div, launch, power_of_2, tl, triton

NORMS = ("rms", "group")
MAX_CHANNELS = 4096


class Tile(NamedTuple):
    """Pixels of a program, and its warps."""

    pixels: int
    warps: int


def tiles(block: int) -> tuple[Tile, ...]:
    """Those worth trying for `block` channels, the default first: 16 values a thread."""
    pixels = max(min(2048 // block, 64), 1)
    warps = max(pixels * block // 512, 1)
    return Tile(pixels, warps), Tile(2 * pixels, warps), Tile(pixels, min(2 * warps, 16))


@triton.jit(do_not_specialize=["size", "height", "width", "splits", "groups"])
def _group_moments(
    x, parts, size, height, width, splits, groups, members, xb, xc, xf, xh, xw,
    PIXELS: tl.constexpr, GROUPS: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """Moments of each group in each of `splits` parts of a sample's pixels."""
    sample, split = (tl.program_id(0) // splits).to(tl.int64), tl.program_id(0) % splits
    g = tl.arange(0, GROUPS)[None, :, None]
    member = tl.arange(0, MEMBERS)[None, None, :]
    channel = (g < groups) & (member < members)
    seen = 0.0
    mean, squares = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
    for first in range(split * PIXELS, size, splits * PIXELS):
        pixel = (first + tl.arange(0, PIXELS))[:, None, None]
        mask = (pixel < size) & channel
        at = x + sample * xb + (pixel // width // height).to(tl.int64) * xf
        at += pixel // width % height * xh + pixel % width * xw
        value = tl.load(at + (g * members + member) * xc, mask, 0.0).to(tl.float32)
        count = (tl.minimum(size - first, PIXELS) * members).to(tl.float32)
        own = tl.sum(tl.sum(value, 2), 0) / count
        centred = tl.where(mask, value - own[None, :, None], 0.0)
        delta, total = own - mean, seen + count
        squares += tl.sum(tl.sum(centred * centred, 2), 0) + delta * delta * (seen * count / total)
        mean += delta * (count / total)
        seen = total
    g = tl.arange(0, GROUPS)
    at = parts + (tl.program_id(0) * groups + g) * 3
    tl.store(at, seen + 0 * mean, g < groups)
    tl.store(at + 1, mean, g < groups)
    tl.store(at + 2, squares, g < groups)


@triton.jit(do_not_specialize=["frames", "height", "width", "groups"])
def _norm_silu(
    x, weight, bias, moments, before, out, frames, height, width, channels,
    groups, members, eps, xb, xc, xf, xh, xw, bb, bc, bf, bh, bw,
    TIME: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REPEAT: tl.constexpr,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    full_width, full_height = width + 2 * COLUMNS, height + 2 * ROWS
    total = full_width * full_height * (frames + TIME)
    blocks = tl.cdiv(total, PIXELS)
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS))[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    channel = c < channels
    # The padded pixel's place among those of x; outside it where negative or too large.
    column = pixel % full_width - COLUMNS
    row = pixel // full_width % full_height - ROWS
    frame = pixel // full_width // full_height - TIME
    inside = (pixel < total) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    early = frame < 0
    source = tl.maximum(frame, 0).to(tl.int64)
    known = inside if REPEAT else inside & (frame >= 0)
    at = x + (sample * xb + source * xf + row * xh + column * xw)
    value = tl.load(at + c * xc, known & channel, 0.0).to(tl.float32)
    if moments is None:
        factor = tl.rsqrt(tl.sum(value * value, 1) / channels + eps)[:, None]
        value *= factor
    else:
        at = moments + (sample * groups + c // members) * 2
        mean, variance = tl.load(at, channel, 0.0), tl.load(at + 1, channel, 1.0)
        value = (value - mean) * tl.rsqrt(variance + eps)
    if weight is not None:
        value *= tl.load(weight + c, channel, 0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + c, channel, 0.0).to(tl.float32)
    value = tl.where(known, value * tl.sigmoid(value), 0.0)
    if before is not None:
        at = before + (sample * bb + (frame + TIME).to(tl.int64) * bf + row * bh + column * bw)
        kept = tl.load(at + c * bc, inside & early & channel, 0.0).to(tl.float32)
        value = tl.where(early, kept, value)
    value = value.to(out.dtype.element_ty)
    at = out + (sample * total + pixel) * channels
    tl.store(at + c, value, (pixel < total) & channel)


def run(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    groups: int,
    eps: float,
    padding: list[int],
    before: Tensor | None,
    repeat_first: bool,
    tile: Tile | None = None,
) -> Tensor:
    """Launch."""
    out = _fake(x, weight, bias, norm, groups, eps, padding, before, repeat_first)
    if out.numel() == 0:
        return out
    channels = x.shape[1]
    block = power_of_2(channels)
    tile = tile or tiles(block)[0]
    moments = _moments(x, groups, tile) if norm == "group" else None
    time, rows, columns = padding
    weight, bias = dense(weight, bias)
    launch(
        _norm_silu,
        (len(x) * ceil_div(out[0].numel() // channels, tile.pixels),),
        *(x, weight, bias, moments, before, out, *x.shape[2:]),
        *(channels, groups, channels // groups if norm == "group" else 1, eps, *x.stride()),
        *((0,) * 5 if before is None else before.stride()),
        TIME=time,
        ROWS=rows,
        COLUMNS=columns,
        REPEAT=repeat_first and before is None,
        PIXELS=tile.pixels,
        BLOCK=block,
        num_warps=tile.warps,
    )
    return out


def _moments(x: Tensor, groups: int, tile: Tile) -> Tensor:
    """Mean and variance (B, groups, 2) of each group."""
    batch, channels, frames, height, width = x.shape
    members = channels // groups
    size = frames * height * width
    splits = min(ceil_div(size, 16 * tile.pixels), MAX_SPLITS)
    parts = empty_parts(x, batch, splits, groups)
    launch(
        _group_moments,
        (batch * splits,),
        *(x, parts, size, height, width, splits, groups, members, *x.stride()),
        PIXELS=tile.pixels,
        GROUPS=power_of_2(groups),
        MEMBERS=power_of_2(members),
        num_warps=tile.warps,
    )
    return merge_moments(parts)


def _plain(x, weight, bias, norm, groups, eps, padding, before, repeat_first):
    return torch_backend.norm_silu(
        x, weight, bias, norm=norm, groups=groups, eps=eps, padding=padding, before=before,
        repeat_first=repeat_first,
    ).clone(memory_format=torch.channels_last_3d)  # fmt: skip


def _fake(x, weight, bias, norm, groups, eps, padding, before, repeat_first):
    batch, channels, frames, height, width = x.shape
    time, rows, columns = padding
    shape = (batch, time + frames, height + 2 * rows, width + 2 * columns, channels)
    return x.new_empty(shape).permute(0, 4, 1, 2, 3)


_op = operator(
    "norm_silu",
    "(Tensor x, Tensor? weight, Tensor? bias, str norm, int groups, float eps, int[] padding,"
    " Tensor? before, bool repeat_first) -> Tensor",
    launch=run,
    plain=_plain,
    fake=_fake,
)


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
    """As `reference.norm_silu`; raises `ValueError` naming what does not fit."""
    check_one_of("norm", norm, NORMS)
    check_eps(eps)
    check_tensors(x=x, weight=weight, bias=bias, before=before)
    if x.dim() != 5 or not 1 <= x.shape[1] <= MAX_CHANNELS:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; (B, C, F, H, W) with 1 to {MAX_CHANNELS} channels works"
        )
    if norm == "group" and (groups < 1 or x.shape[1] % groups):
        raise ValueError(f"groups={groups} do not divide {x.shape[1]} channels")
    if len(padding) != 3 or min(padding) < 0:
        raise ValueError(
            f"padding={tuple(padding)}; (frames before, rows, columns), 0 or more, works"
        )
    check_shape("weight", weight, x.shape[1:2])
    check_shape("bias", bias, x.shape[1:2])
    check_shape("before", before, (*x.shape[:2], padding[0], *x.shape[3:]))
    if repeat_first and before is not None:
        raise ValueError("repeat_first and before are two ways to fill the same frames; give one")
    if x.numel() == 0 and any(padding):
        raise ValueError(f"x has shape {tuple(x.shape)}: there is nothing to pad by {padding}")
    return _op(x, weight, bias, norm, groups, eps, list(padding), before, repeat_first)


def compilations() -> Iterator[Compilation]:
    """Widths 384 and 96 of Wan's decoder, 512 and 128 of a GroupNorm one; every dtype and tile."""
    cases = (("rms", 384), ("rms", 96), ("group", 512), ("group", 128))
    for (norm, channels), dtype in product(cases, DTYPES):
        x = torch.empty(1, 4, 60, 104, channels, dtype=dtype, device="meta").permute(0, 4, 1, 2, 3)
        vector = x.new_empty(channels)
        before = x[:, :, :2] if norm == "rms" else None
        for index, tile in enumerate(tiles(power_of_2(channels))):
            yield from record(
                "norm_silu",
                f"{str(dtype)[6:]} {norm} C={channels} pixels={tile.pixels} warps={tile.warps}",
                partial(
                    run, x, vector, vector, norm, 32, 1e-6, [2, 1, 1], before, norm == "group", tile
                ),
                default=ARCHES if index == 0 and dtype == torch.bfloat16 else (),
            )
