"""Which (time, height, width) tiles of tokens attend to which: the masks of sparse attention.

Tokens stay where they are, in raster order; a table says which of them make up each tile. So any
tile size fits any grid, ragged edges included, and text tokens become tiles of their own.

Shape legend: T tiles, R places in a tile, K most key tiles of any query tile.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int, int]


class TileMask(NamedTuple):
    """Tiles of tokens, and for each the tiles it attends to; int32 throughout.

    Every token is in exactly one tile. A key tile is listed once.
    """

    rows: Tensor  # (T, R) the token in each place of each tile, -1 for none
    keys: Tensor  # (B or 1, N or 1, T, K) key tiles, the first `counts` of each row valid
    counts: Tensor  # (B or 1, N or 1, T)
    num_tokens: int

    def to(self, device: torch.device | str) -> TileMask:
        """The same on another device."""
        rows, keys, counts = (tensor.to(device) for tensor in self[:3])
        return TileMask(rows, keys, counts, self.num_tokens)

    def allowed(self) -> Tensor:
        """Which tile attends to which, bool (B or 1, N or 1, T, T)."""
        tiles = self.rows.shape[0]
        valid = torch.arange(self.keys.shape[-1], device=self.keys.device) < self.counts[..., None]
        # What is not valid is written to a column that is cut off.
        where = self.keys.long().where(valid, tiles)
        allowed = torch.zeros(*self.counts.shape, tiles + 1, dtype=torch.bool, device=where.device)
        return allowed.scatter_(-1, where, True)[..., :tiles]

    def dense(self) -> Tensor:
        """The same mask token by token, bool (B or 1, N or 1, L, L), for a definition or a look."""
        place = self.rows.flatten()
        tile = torch.arange(self.rows.shape[0], device=place.device)
        of_place = tile.repeat_interleave(self.rows.shape[1])[place >= 0]
        of_token = tile.new_empty(self.num_tokens)
        of_token[place[place >= 0].long()] = of_place
        return self.allowed()[..., of_token[:, None], of_token[None, :]]


def tile_rows(grid: Size, tile: Size, before: int = 0, after: int = 0) -> Tensor:
    """Places (T, R) of a token grid (time, height, width) cut into tiles, R = prod(tile).

    `before` and `after`: tokens in front of and behind the grid, text say, in tiles of their own.
    Order: tiles in front, those of the grid in raster order, tiles behind.
    """
    if len(grid) != 3 or len(tile) != 3 or min(*grid, *tile) < 1 or min(before, after) < 0:
        raise ValueError(
            f"grid {grid}, tile {tile}, before {before}, after {after}: sizes are three numbers"
            " from 1 on, counts 0 or more"
        )
    size = prod(tile)
    numbers = torch.arange(prod(grid), dtype=torch.int32).view(grid) + before
    counts = tiles_of(grid, tile)
    padded = numbers.new_full([n * t for n, t in zip(counts, tile, strict=True)], -1)
    padded[: grid[0], : grid[1], : grid[2]] = numbers
    shape = [x for pair in zip(counts, tile, strict=True) for x in pair]
    inner = padded.view(shape).permute(0, 2, 4, 1, 3, 5).reshape(-1, size)
    end = before + prod(grid)
    return torch.cat([_run(0, before, size), inner, _run(end, end + after, size)])


def tile_mask(rows: Tensor, allowed: Tensor) -> TileMask:
    """Any block mask: `allowed` bool (T, T), or with heads and batch in front, on tiles `rows`.

    Raises `ValueError` if the shapes differ, or a token is in no tile or in two.
    """
    tiles = rows.shape[0]
    if allowed.dtype != torch.bool or allowed.shape[-2:] != (tiles, tiles) or allowed.dim() > 4:
        raise ValueError(
            f"allowed is {allowed.dtype} {tuple(allowed.shape)}; it must be bool (..., {tiles},"
            f" {tiles}) with at most batch and heads in front"
        )
    tokens = rows[rows >= 0].sort().values
    if not torch.equal(tokens, torch.arange(len(tokens), dtype=tokens.dtype, device=rows.device)):
        raise ValueError("rows must hold each token from 0 on exactly once")
    allowed = allowed[(None,) * (4 - allowed.dim())]
    counts = allowed.sum(-1, dtype=torch.int32)
    most = max(int(counts.max()) if counts.numel() else 0, 1)
    order = allowed.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)
    keys = order[..., :most].to(torch.int32).contiguous()
    return TileMask(rows.to(torch.int32).contiguous(), keys, counts, len(tokens))


def sliding_tiles(
    grid: Size, tile: Size, window: Size, before: int = 0, after: int = 0
) -> TileMask:
    """Each tile attends to the box of `window` tiles around it, moved inside at the grid's edges.

    As sliding tile attention (arXiv 2502.04507): every query tile sees equally many key tiles. Text
    tokens attend to everything and everything to them. Window sizes are odd or span the grid.
    """
    counts = tiles_of(grid, tile)
    sizes = tuple(min(size, count) for size, count in zip(window, counts, strict=True))
    for size, count in zip(sizes, counts, strict=True):
        if size < 1 or (size % 2 == 0 and size != count):
            raise ValueError(
                f"window {sizes} on {counts} tiles: each size must be odd, or reach across all"
            )
    near = torch.ones(1, 1, dtype=torch.bool)
    for size, count in zip(sizes, counts, strict=True):
        first = (torch.arange(count) - size // 2).clamp(0, count - size)
        distance = torch.arange(count)[None, :] - first[:, None]
        near = torch.kron(near.int(), ((distance >= 0) & (distance < size)).int()).bool()
    front, back = (-(-count // prod(tile)) for count in (before, after))
    allowed = torch.ones(front + len(near) + back, front + len(near) + back, dtype=torch.bool)
    allowed[front : front + len(near), front : front + len(near)] = near
    return tile_mask(tile_rows(grid, tile, before, after), allowed)


def best_tile(grid: Size, places: int = 128) -> Size:
    """The tile of at most `places` tokens that leaves fewest places empty, then the most cubic."""

    def cost(tile: Size) -> tuple[float, int]:
        return prod(tiles_of(grid, tile)) * places, sum(tile)

    times, rows, columns = (range(1, min(length, places) + 1) for length in grid)
    return min((tile for tile in product(times, rows, columns) if prod(tile) <= places), key=cost)


def tiles_of(grid: Size, tile: Size) -> Size:
    """Tiles along each axis, the last of which may be ragged."""
    times, rows, columns = (-(-length // size) for length, size in zip(grid, tile, strict=True))
    return times, rows, columns


def _run(start: int, end: int, size: int) -> Tensor:
    """Consecutive tokens in tiles of `size`."""
    count = -(-(end - start) // size)
    places = torch.arange(start, start + count * size, dtype=torch.int32)
    return places.where(places < end, -1).view(count, size)
