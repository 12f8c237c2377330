"""Latents to tokens; the embedding is one product that gathers its patches as it reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_shape, check_tensors
from ._compilations import WGMMA, Compilation, defaults, record
from ._layout import dense
from ._operator import operator
from ._triton import ceil_div, launch, tl, triton


class Tile(NamedTuple):
    """Tokens, output channels and inner channels of a program's blocks; its warps and stages."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.inner} warps={self.warps} stages={self.stages}"


def tiles(dtype: torch.dtype) -> tuple[Tile, ...]:
    """Those worth trying for a product in `dtype`, the default first."""
    if dtype == torch.float32:  # whose products take registers, not tensor cores
        return Tile(64, 64, 32, 8, 1), Tile(32, 64, 32, 8, 1)
    return Tile(64, 64, 64, 8, 1), Tile(64, 128, 64, 8, 1), Tile(128, 64, 64, 8, 1)


@triton.jit
def patch_offset(
    k, channels, sc, sf, sh, sw,
    P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
):  # fmt: skip
    """Where value k of a patch lies from its first."""
    if CHANNELS_FIRST:
        c, place = k // (P * Q * R), k % (P * Q * R)
    else:
        c, place = k % channels, k // channels
    return c * sc + place // (Q * R) * sf + place // R % Q * sh + place % R * sw


@triton.jit(do_not_specialize=["f", "h", "w", "columns"])
def _patchify(
    latents, weight, bias, out, f, h, w, channels, size, columns, sb, sc, sf, sh, sw, wd, wk,
    P: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, CHANNELS_FIRST: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    tokens = f * h * w
    parts, blocks = tl.cdiv(columns, N), tl.cdiv(tokens, M)
    n = tl.program_id(0) % parts * N + tl.arange(0, N)[None, :]
    within = tl.arange(0, M)[:, None]
    top = tl.program_id(0) // parts % blocks * M
    m = top + within
    sample = (tl.program_id(0) // parts // blocks).to(tl.int64)
    latents += sample * sb
    out += (sample * tokens + top) * columns
    token = m // w // h * (P * sf) + m // w % h * (Q * sh) + m % w * (R * sw)
    mask = (m < tokens) & (n < columns)
    if weight is None:
        place = patch_offset(n, channels, sc, sf, sh, sw, P, Q, R, CHANNELS_FIRST)
        result = tl.load(latents + (token + place), mask, 0.0)
    else:
        result = tl.zeros((M, N), tl.float32)
        for first in range(0, size, K):
            k = first + tl.arange(0, K)
            place = patch_offset(k[None, :], channels, sc, sf, sh, sw, P, Q, R, CHANNELS_FIRST)
            inside = (m < tokens) & (k[None, :] < size)
            patch = tl.load(latents + (token + place), inside, 0.0)
            inside = (k[:, None] < size) & (n < columns)
            rows = tl.load(weight + (n * wd + k[:, None] * wk), inside, 0.0)
            result = tl.dot(patch.to(rows.dtype), rows, result, input_precision="ieee")
        if bias is not None:
            result += tl.load(bias + n, n < columns, 0.0).to(tl.float32)
    tl.store(out + (within * columns + n), result.to(out.dtype.element_ty), mask)


def run(
    latents: Tensor,
    patch_size: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    channels_first: bool,
    tile: Tile | None = None,
) -> Tensor:
    """Launch."""
    out = _fake(latents, patch_size, weight, bias, channels_first)
    if out.numel() == 0:
        return out
    p, q, r = patch_size
    batch, f, h, w, columns = out.shape
    channels = latents.shape[1]
    tile = tile or tiles(out.dtype)[0]
    (bias,) = dense(bias)
    launch(
        _patchify,
        (batch * ceil_div(f * h * w, tile.rows) * ceil_div(columns, tile.columns),),
        *(latents, weight, bias, out, f, h, w),
        *(channels, channels * p * q * r, columns, *latents.stride()),
        *((0, 0) if weight is None else weight.stride()),
        **dict(zip("PQR", patch_size, strict=True)),
        CHANNELS_FIRST=channels_first,
        **dict(zip("MNK", tile[:3], strict=True)),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def _plain(latents, patch_size, weight, bias, channels_first):
    tokens = torch_backend.patchify(
        latents, patch_size, weight, bias, channels_first=channels_first
    )
    return tokens.clone() if weight is None else tokens  # an operator's output is no view


def _fake(latents, patch_size, weight, bias, channels_first):
    batch, channels, frames, height, width = latents.shape
    p, q, r = patch_size
    grid = (batch, frames // p, height // q, width // r)
    if weight is None:
        return latents.new_empty(*grid, channels * p * q * r)
    return weight.new_empty(*grid, weight.shape[0])


_op = operator(
    "patchify",
    "(Tensor latents, int[] patch_size, Tensor? weight, Tensor? bias, bool channels_first)"
    " -> Tensor",
    launch=run,
    plain=_plain,
    fake=_fake,
)


def patchify(
    latents: Tensor,
    patch_size: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    channels_first: bool = True,
) -> Tensor:
    """As `reference.patchify`; raises `ValueError` naming what does not fit."""
    check_tensors(latents=latents, weight=weight, bias=bias)
    patch_size = check_patch(patch_size)
    if latents.dim() != 5:
        raise ValueError(f"latents have shape {tuple(latents.shape)}; (B, C, F, H, W) works")
    if any(size % patch for size, patch in zip(latents.shape[2:], patch_size, strict=True)):
        raise ValueError(
            f"latents {tuple(latents.shape[2:])} (frames, height, width) are not multiples of"
            f" {tuple(patch_size)}"
        )
    if bias is not None and weight is None:
        raise ValueError("bias is given without weight; it belongs to the embedding")
    if weight is not None:
        size = latents.shape[1] * prod(patch_size)
        if weight.dim() != 2 or weight.shape[1] != size:
            raise ValueError(f"weight has shape {tuple(weight.shape)}; (d, {size}) works")
        check_shape("bias", bias, weight.shape[:1])
    return _op(latents, patch_size, weight, bias, channels_first)


def check_patch(patch_size: Sequence[int]) -> list[int]:
    """The sizes (p, q, r) as a list; `ValueError` unless they are three and positive."""
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise ValueError(f"patch_size={tuple(patch_size)}; three positive sizes (p, q, r) work")
    return list(patch_size)


def compilations() -> Iterator[Compilation]:
    """Wan 1.3B and 14B at patches of (1, 2, 2); every dtype and tile."""
    latents = torch.empty(1, 16, 21, 60, 104, device="meta")
    for width, dtype in product((1536, 5120), DTYPES):
        weight, bias = latents.new_empty(width, 64, dtype=dtype), latents.new_empty(width)
        for index, tile in enumerate(tiles(dtype)):
            yield from record(
                "patchify",
                f"{str(dtype)[6:]} d={width} {tile}",
                partial(run, latents, [1, 2, 2], weight, bias, True, tile),
                default=defaults(dtype) if index == 0 else (),
                needs=frozenset() if dtype == torch.float32 else WGMMA,
            )
