"""Norm and rotary embedding of queries and keys in one pass, from where the packed product left
them to attention's layout.

A program holds all heads of a token, or a few where each head is normed alone, and does q and then
k with the same angles. Angles come from compact tables, a row for each position along each axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_backend
from ._checks import DTYPES, check_eps, check_one_of, check_shape, check_tensors
from ._compilations import ARCHES, Compilation, record
from ._layout import dense
from ._operator import operator
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .rope import Rope, rope_tables

NORMS = ("rms_across_heads", "rms_per_head", "layer_per_head")
LAYOUTS = ("blnd", "bnld")
MAX_CHANNELS = 16384


class Tile(NamedTuple):
    """Heads of a program, and its warps."""

    heads: int
    warps: int


def tiles(heads: int, head_dim: int, across: bool) -> tuple[Tile, ...]:
    """Those worth trying, the default first."""
    if across:
        block = power_of_2(heads)
    else:
        whole = heads & -heads
        block = min(whole if whole >= 4 else power_of_2(heads), 16)
    warps = min(max(block * power_of_2(head_dim) // 512, 1), 16)
    tile = Tile(block, warps)
    return tile, tile._replace(warps=max(warps // 2, 1)), tile._replace(warps=min(2 * warps, 16))


@triton.jit
def _load_pairs(
    p, stride, head_mask, half, CACHE: tl.constexpr, INTERLEAVED: tl.constexpr, HALF: tl.constexpr
):
    """Channel pairs of rows of heads `p` (HEADS, 1), as two fp32 blocks (HEADS, HALF)."""
    if INTERLEAVED:
        c = tl.arange(0, 2 * HALF)[None, :]
        row = tl.load(p + c * stride, head_mask & (c < 2 * half), 0.0, cache_modifier=CACHE).to(
            tl.float32
        )
        first, second = tl.split(tl.reshape(row, (row.shape[0], HALF, 2)))
    else:
        c = tl.arange(0, HALF)[None, :]
        mask = head_mask & (c < half)
        first = tl.load(p + c * stride, mask, 0.0, cache_modifier=CACHE).to(tl.float32)
        second = tl.load(p + (c + half) * stride, mask, 0.0, cache_modifier=CACHE).to(tl.float32)
    return first, second


@triton.jit
def _store_pairs(p, first, second, head_mask, half, INTERLEAVED: tl.constexpr, HALF: tl.constexpr):
    if INTERLEAVED:
        c = tl.arange(0, 2 * HALF)[None, :]
        row = tl.reshape(tl.join(first, second), (first.shape[0], 2 * HALF))
        tl.store(p + c, row.to(p.dtype.element_ty), head_mask & (c < 2 * half))
    else:
        c = tl.arange(0, HALF)[None, :]
        mask = head_mask & (c < half)
        tl.store(p + c, first.to(p.dtype.element_ty), mask)
        tl.store(p + (c + half), second.to(p.dtype.element_ty), mask)


@triton.jit
def _norm_and_turn(
    x, stride, weight, bias, weight_rows, out, cos, sin, head_mask, half, count, eps,
    RMS: tl.constexpr, ACROSS: tl.constexpr, INTERLEAVED: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    first, second = _load_pairs(x, stride, head_mask, half, ".cg", INTERLEAVED, HALF)
    if not RMS:
        mean = ((tl.sum(first, 1) + tl.sum(second, 1)) / count)[:, None]
        mask = head_mask & (tl.arange(0, HALF)[None, :] < half)
        first, second = tl.where(mask, first - mean, 0.0), tl.where(mask, second - mean, 0.0)
    square = tl.sum(first * first + second * second, 1)
    if ACROSS:
        factor = tl.rsqrt(tl.sum(square, 0) / count + eps)
    else:
        factor = tl.rsqrt(square / count + eps)[:, None]
    first, second = first * factor, second * factor
    if weight is not None:
        w1, w2 = _load_pairs(weight + weight_rows, 1, head_mask, half, "", INTERLEAVED, HALF)
        first, second = first * w1, second * w2
    if bias is not None:
        b1, b2 = _load_pairs(bias + weight_rows, 1, head_mask, half, "", INTERLEAVED, HALF)
        first, second = first + b1, second + b2
    turned = first * cos - second * sin
    second = first * sin + second * cos
    _store_pairs(out, turned, second, head_mask, half, INTERLEAVED, HALF)


@triton.jit(do_not_specialize=["length", "start", "f", "h", "w"])
def _qk_norm_rope(
    q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, q_out, k_out,
    length, heads, half, start, f, h, w, p0, p1, p2, count, eps,
    qb, ql, qn, qd, kb, kl, kn, kd, ob, ol, on,
    RMS: tl.constexpr, ACROSS: tl.constexpr, INTERLEAVED: tl.constexpr, BY_HEAD: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    parts = tl.cdiv(heads, HEADS)
    n = tl.program_id(0) % parts * HEADS + tl.arange(0, HEADS)[:, None]
    token = tl.program_id(0) // parts
    place = token % length
    head_mask = n < heads

    turn, still = 1.0, 0.0
    if cos is not None:
        j = tl.arange(0, HALF)[None, :]
        column = j + n * half if BY_HEAD else j
        at = place - start
        i0, i1, i2 = at // w // h, at // w % h, at % w
        time, row = f * p0, f * p0 + h * p1
        index = tl.where(
            column < p0,
            i0 * p0 + column,
            tl.where(
                column < p0 + p1, time + i1 * p1 + column - p0, row + i2 * p2 + column - p0 - p1
            ),
        )
        mask = j < tl.where((at >= 0) & (at < f * h * w), half, 0)  # none of a token off the grid
        mask = mask & head_mask if BY_HEAD else mask
        turn, still = tl.load(cos + index, mask, 1.0), tl.load(sin + index, mask, 0.0)

    sample, place = (token // length).to(tl.int64), place.to(tl.int64)
    weight_rows = n * (2 * half) if ACROSS else n * 0
    out = sample * ob + place * ol + n * on
    _norm_and_turn(
        q + (sample * qb + place * ql) + n * qn, qd, q_weight, q_bias, weight_rows, q_out + out,
        turn, still, head_mask, half, count, eps, RMS, ACROSS, INTERLEAVED, HALF,
    )  # fmt: skip
    _norm_and_turn(
        k + (sample * kb + place * kl) + n * kn, kd, k_weight, k_bias, weight_rows, k_out + out,
        turn, still, head_mask, half, count, eps, RMS, ACROSS, INTERLEAVED, HALF,
    )  # fmt: skip


def run(
    q: Tensor,
    k: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    grid: list[int],
    pairs: list[int],
    norm: str,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    eps: float,
    interleaved: bool,
    start: int,
    layout: str,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Launch."""
    q_out, k_out = _empty(q, layout), _empty(k, layout)
    if q.numel() == 0:
        return q_out, k_out
    batch, length, heads, head_dim = q.shape
    across = norm.endswith("across_heads")
    vectors = dense(q_weight, k_weight, q_bias, k_bias)
    tile = tile or tiles(heads, head_dim, across)[0]
    launch(
        _qk_norm_rope,
        (batch * length * ceil_div(heads, tile.heads),),
        *(q, k, *vectors, cos, sin, q_out, k_out),
        *(length, heads, head_dim // 2, start, *grid, *pairs),
        *(heads * head_dim if across else head_dim, eps, *q.stride(), *k.stride()),
        *(q_out.stride(0), q_out.stride(2), q_out.stride(1)),
        RMS=norm.startswith("rms"),
        ACROSS=across,
        INTERLEAVED=interleaved,
        BY_HEAD=2 * sum(pairs) > head_dim,
        HEADS=tile.heads,
        HALF=power_of_2(head_dim // 2),
        num_warps=tile.warps,
    )
    return q_out, k_out


def _empty(x: Tensor, layout: str) -> Tensor:
    batch, length, heads, head_dim = x.shape
    if layout == "bnld":
        return x.new_empty(batch, heads, length, head_dim)
    return x.new_empty(batch, length, heads, head_dim).transpose(1, 2)


def _plain(
    q, k, cos, sin, grid, pairs, norm, q_weight, k_weight, q_bias, k_bias, eps, interleaved, start,
    layout,
):  # fmt: skip
    return torch_backend.qk_norm_rope(
        q, k, None if cos is None else Rope(cos, sin, tuple(grid), tuple(pairs)), norm=norm,
        q_weight=q_weight, k_weight=k_weight, q_bias=q_bias, k_bias=k_bias, eps=eps,
        interleaved=interleaved, start=start, layout=layout,
    )  # fmt: skip


def _fake(q, k, *rest):
    return _empty(q, rest[-1]), _empty(k, rest[-1])


_op = operator(
    "qk_norm_rope",
    "(Tensor q, Tensor k, Tensor? cos, Tensor? sin, SymInt[] grid, int[] pairs, str norm,"
    " Tensor? q_weight, Tensor? k_weight, Tensor? q_bias, Tensor? k_bias, float eps,"
    " bool interleaved, SymInt start, str layout) -> (Tensor, Tensor)",
    launch=run,
    plain=_plain,
    fake=_fake,
)


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
    """As `reference.qk_norm_rope`; raises `ValueError` naming what does not fit."""
    check_one_of("norm", norm, NORMS)
    check_one_of("layout", layout, LAYOUTS)
    check_eps(eps)
    check_tensors(q=q, k=k, q_weight=q_weight, k_weight=k_weight, q_bias=q_bias, k_bias=k_bias)
    if q.dim() != 4 or q.shape[3] % 2 or q.shape[3] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; (B, L, N, D) with an even D works")
    check_shape("k", k, q.shape)
    channels = q.shape[2] * q.shape[3]
    if channels > MAX_CHANNELS:
        raise ValueError(f"q has {channels} channels in all heads; up to {MAX_CHANNELS} work")
    over = channels if norm.endswith("across_heads") else q.shape[3]
    for side, weight, bias in (("q", q_weight, q_bias), ("k", k_weight, k_bias)):
        check_shape(f"{side}_weight", weight, (over,))
        check_shape(f"{side}_bias", bias, (over,))
    if rope is not None:
        _check_rope(rope, q, start)
    cos, sin, grid, pairs = (None, None, (1, 1, 1), (0, 0, 0)) if rope is None else rope
    return _op(
        q, k, cos, sin, list(grid), list(pairs), norm, q_weight, k_weight, q_bias, k_bias, eps,
        interleaved, start, layout,
    )  # fmt: skip


def _check_rope(rope: Rope, q: Tensor, start: int) -> None:
    _, length, heads, head_dim = q.shape
    half, pairs = head_dim // 2, sum(rope.pairs)
    if pairs != half and pairs != heads * half:
        raise ValueError(
            f"rope.pairs {rope.pairs} are {pairs}; {half}, half of the head's channels, or"
            f" {heads * half}, of all heads', works"
        )
    f, h, w = rope.grid
    if start < 0 or start + f * h * w > length:
        raise ValueError(
            f"the rope's grid {rope.grid} from token {start} does not lie within {length} tokens"
        )
    size = sum(long * wide for long, wide in zip(rope.grid, rope.pairs, strict=True))
    for name, table in (("rope.cos", rope.cos), ("rope.sin", rope.sin)):
        check_shape(name, table, (size,))
        check_tensors((torch.float32,), **{name: table})
        if table.device != q.device or table.stride() != (1,):
            raise ValueError(f"{name} must be contiguous and on {q.device}, as q is")


MODELS = {  # norm, heads, head dim, pairs of rope, interleaved
    "wan-1.3b": ("rms_across_heads", 12, 128, (22, 21, 21), True),
    "wan-14b": ("rms_across_heads", 40, 128, (22, 21, 21), True),
    "hunyuan": ("rms_per_head", 24, 128, (8, 28, 28), True),
    "cogvideox": ("layer_per_head", 48, 64, (8, 12, 12), True),
}


def compilations() -> Iterator[Compilation]:
    """Heads of Wan 1.3B and 14B, HunyuanVideo and CogVideoX-5b; every dtype and tile."""
    for (name, case), dtype in product(MODELS.items(), DTYPES):
        norm, heads, head_dim, pairs, interleaved = case
        cos, sin, grid, pairs = rope_tables((21, 30, 52), pairs, device="meta")
        packed = torch.empty(1, 32760, 3, heads, head_dim, dtype=dtype, device="meta")
        across = norm.endswith("across_heads")
        weight = packed.new_empty(heads * head_dim if across else head_dim)
        bias = weight if norm.startswith("layer") else None
        vectors = (weight, weight, bias, bias)
        q, k = packed[:, :, 0], packed[:, :, 1]
        for index, tile in enumerate(tiles(heads, head_dim, across)):
            yield from record(
                "qk_norm_rope",
                f"{str(dtype)[6:]} {name} heads={tile.heads} warps={tile.warps}",
                partial(
                    run,
                    q,
                    k,
                    cos,
                    sin,
                    grid,
                    pairs,
                    norm,
                    *vectors,
                    1e-6,
                    interleaved,
                    0,
                    "blnd",
                    tile,
                ),
                default=ARCHES if index == 0 and dtype == torch.bfloat16 else (),
            )
