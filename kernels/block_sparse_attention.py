"""Attention over (time, height, width) tiles of tokens, each with the tiles its mask lists.

Work and traffic grow with the tiles listed; the result is that of dense attention under the same
mask. Tokens are gathered where they lie, so no permutation runs before or after.

Shape legend: B batch, N heads, L tokens, D head size, T tiles, R places in a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from . import torch_backend
from ._checks import check_attention, check_heads, check_tiles
from ._chip import capability
from ._compilations import ARCHES, WGMMA, Compilation, defaults, record
from ._operator import operator
from ._softmax import LOG2_E, Config, attend, empty_output, fp32_config, gather, scatter
from ._triton import ceil_div, launch, power_of_2, tl, triton
from .tiles import TileMask


def configs(major: int, head_dim: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """Those worth trying on a chip of compute capability `major`, the default first."""
    if dtype == torch.float32:
        return (fp32_config(head_dim),)
    if head_dim > 128:
        return (Config(64, 32, 4, 2),)
    if major in (9, 10):
        return (Config(128, 64, 8, 3), Config(128, 128, 8, 2), Config(64, 64, 4, 3))
    return (Config(128, 32, 8, 2), Config(64, 64, 4, 2))


@triton.jit
def _block_sparse(
    out, q, k, v, rows, key_tiles, counts, out_b, out_n, out_l, q_b, q_n, q_l, k_b, k_n, k_l, v_b,
    v_n, v_l, tiles_b, tiles_n, tiles_t, counts_b, counts_n, heads, scale,
    PLACES: tl.constexpr, PADDED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    QUERY_PARTS: tl.constexpr = (PLACES + BLOCK_M - 1) // BLOCK_M
    KEY_PARTS: tl.constexpr = (PLACES + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0) // QUERY_PARTS
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    key_tiles += batch * tiles_b + head * tiles_n + tile.to(tl.int64) * tiles_t
    k += batch * k_b + head * k_n
    v += batch * v_b + head * v_n
    place = tl.program_id(0) % QUERY_PARTS * BLOCK_M + tl.arange(0, BLOCK_M)
    row = tl.load(rows + tile * PLACES + place, mask=place < PLACES, other=-1)
    query = gather(q + batch * q_b + head * q_n, row, row >= 0, q_l, D, BLOCK_D, True)
    scales = tl.full([BLOCK_M], scale, tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    column = tl.arange(0, BLOCK_N)
    parts = tl.load(counts + batch * counts_b + head * counts_n + tile) * KEY_PARTS
    for part in tl.range(0, parts):
        key_place = part % KEY_PARTS * BLOCK_N + column
        key_rows = rows + tl.load(key_tiles + part // KEY_PARTS) * PLACES
        if PADDED:
            key_row = tl.load(key_rows + key_place, mask=key_place < PLACES, other=-1)
        else:
            key_row = tl.load(key_rows + key_place)
        inside = key_row >= 0
        key = gather(k, key_row, inside, k_l, D, BLOCK_D, PADDED)
        value = gather(v, key_row, inside, v_l, D, BLOCK_D, PADDED)
        added = tl.where(inside, 0.0, float("-inf"))
        acc, total, peak = attend(
            acc, total, peak, query, key, value, scales, added, PADDED, 0, PRECISION
        )
    scatter(out + batch * out_b + head * out_n, row, row >= 0, out_l, acc, total, D, BLOCK_D)


def run(
    query: Tensor, key: Tensor, value: Tensor, tiles: TileMask, scale: float, config: Config
) -> Tensor:
    """Launch one configuration, checks left out."""
    batch, heads, tokens, head_dim = query.shape
    out = empty_output(query)
    if out.numel() == 0:
        return out
    num_tiles, places = tiles.rows.shape
    key_tiles = tiles.keys.expand(batch, heads, -1, -1)
    counts = tiles.counts.expand(batch, heads, -1)
    tensors = (out, query, key, value)
    launch(
        _block_sparse,
        (num_tiles * ceil_div(places, config.block_m), batch * heads),
        *tensors,
        tiles.rows,
        key_tiles,
        counts,
        *(step for tensor in tensors for step in tensor.stride()[:3]),
        *key_tiles.stride()[:3],
        *counts.stride()[:2],
        heads,
        scale * LOG2_E,
        PLACES=places,
        PADDED=tiles.rows.numel() != tokens or places % config.block_n != 0,
        D=head_dim,
        BLOCK_D=max(16, power_of_2(head_dim)),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        PRECISION="tf32x3" if query.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def _launch(query, key, value, rows, key_tiles, counts, scale):
    config = configs(capability(query.device), query.shape[-1], query.dtype)[0]
    tiles = TileMask(rows, key_tiles, counts, query.shape[2])
    return run(query, key, value, tiles, scale, config)


def _plain(query, key, value, rows, key_tiles, counts, scale):
    tiles = TileMask(rows, key_tiles, counts, query.shape[2])
    out = torch_backend.block_sparse_attention(query, key, value, tiles, scale=scale)
    return empty_output(query).copy_(out)


def _fake(query, key, value, rows, key_tiles, counts, scale):
    return empty_output(query)


_op = operator(
    "block_sparse_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor rows, Tensor key_tiles, Tensor counts,"
    " float scale) -> Tensor",
    launch=_launch,
    plain=_plain,
    fake=_fake,
)


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, tiles: TileMask, *, scale: float | None = None
) -> Tensor:
    """As `reference.block_sparse_attention`; raises `ValueError` naming what does not fit.

    Head dims up to 256, channels contiguous. `tiles` come from `sliding_tiles` or `tile_mask`.
    """
    scale = check_attention(query, key, value, None, scale)
    check_tiles(query, key, tiles)
    check_heads(query=query, key=key, value=value)
    return _op(query, key, value, *tiles[:3], scale)


def compilations() -> Iterator[Compilation]:
    """Every configuration at the head dims of the models; ragged tiles, and full ones."""
    for arch, head_dim, dtype, places in product(
        ARCHES, (64, 128), (torch.bfloat16, torch.float16), (120, 128)
    ):
        packed = torch.empty(1, 8 * places, 3, 12, head_dim, dtype=dtype, device="meta")
        query, key, value = packed.transpose(1, 3).unbind(2)
        numbers = partial(torch.empty, dtype=torch.int32, device="meta")
        tiles = TileMask(numbers(8, places), numbers(1, 1, 8, 8), numbers(1, 1, 8), 8 * places)
        for index, config in enumerate(configs(int(arch[3:]) // 10, head_dim, dtype)):
            yield from record(
                "block_sparse_attention",
                f"{str(dtype)[6:]} head dim {head_dim} places {places} {config}",
                partial(run, query, key, value, tiles, 0.1, config),
                default=defaults(dtype) if index == 0 else (),
                needs=WGMMA,
                arches=(arch,),
            )
