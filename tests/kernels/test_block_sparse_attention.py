"""block_sparse_attention against its definition: exact for its mask."""

from __future__ import annotations

from math import prod

import pytest
import torch

from kinema import kernels
from kinema.kernels import reference, torch_backend
from kinema.kernels._softmax import Config
from kinema.kernels.attention import run as run_dense
from kinema.kernels.block_sparse_attention import configs, run
from kinema.kernels.tiles import best_tile, sliding_tiles, tile_mask, tile_rows

CONFIG = Config(32, 16, 4, 1)
GRIDS = {
    "exact": ((4, 4, 8), (2, 2, 4)),
    "ragged": ((3, 5, 7), (2, 2, 3)),
    "several blocks a tile": ((2, 5, 6), (2, 4, 5)),
}


def heads(batch: int, count: int, length: int, head_dim: int = 16, dtype=torch.float32):
    packed = torch.randn(batch, length, 3, count, head_dim).to(dtype)
    return packed.transpose(1, 3).unbind(2)


def exact(query, key, value, tiles, scale=None):
    """The definition in float64."""
    doubles = (tensor.double() for tensor in (query, key, value))
    return reference.block_sparse_attention(*doubles, tiles, scale=scale)


@pytest.mark.parametrize("name", GRIDS)
def test_parity_of_sliding_tiles(dtype, name, assert_as_accurate) -> None:
    grid, tile = GRIDS[name]
    tiles = sliding_tiles(grid, tile, (1, 1, 3))
    query, key, value = heads(1, 1, prod(grid), dtype=dtype)
    out = run(query, key, value, tiles, 0.25, CONFIG)
    plain = torch_backend.block_sparse_attention(query, key, value, tiles)
    assert_as_accurate(out, plain, exact(query, key, value, tiles))


@pytest.mark.parametrize("text", [(5, 0), (3, 20)])
def test_text_sees_and_is_seen_by_all(text, assert_as_accurate) -> None:
    grid, tile = GRIDS["ragged"]
    tiles = sliding_tiles(grid, tile, (1, 1, 3), *text)
    query, key, value = heads(1, 1, prod(grid) + sum(text))
    out = run(query, key, value, tiles, 0.25, CONFIG)
    plain = torch_backend.block_sparse_attention(query, key, value, tiles)
    assert_as_accurate(out, plain, exact(query, key, value, tiles))
    seen = tiles.dense()[0, 0]
    assert seen[: text[0]].all()
    assert seen[:, : text[0]].all()
    assert seen[len(seen) - text[1] :].all()


def test_any_mask_of_any_head(assert_as_accurate) -> None:
    rows = tile_rows((3, 4, 5), (2, 2, 2))
    allowed = torch.rand(2, 3, len(rows), len(rows)) < 0.4
    allowed[1, 2, 3] = False  # a tile that sees nothing
    tiles = tile_mask(rows, allowed)
    query, key, value = heads(2, 3, 60)
    out = run(query, key, value, tiles, 0.25, CONFIG)
    truth = exact(query, key, value, tiles)
    assert_as_accurate(out, reference.block_sparse_attention(query, key, value, tiles), truth)
    assert not out[1, 2, rows[3][rows[3] >= 0].long()].any()


def test_a_full_mask_is_dense_attention() -> None:
    tiles = sliding_tiles((2, 4, 4), (2, 2, 2), (9, 9, 9))
    query, key, value = heads(1, 2, 32)
    sparse = run(query, key, value, tiles, 0.25, CONFIG)
    dense = run_dense(query, key, value, None, 0.25, CONFIG)
    # The same terms in another order.
    torch.testing.assert_close(sparse, dense, rtol=0, atol=8 * torch.finfo(torch.float32).eps)


def test_what_the_mask_leaves_out_does_not_count() -> None:
    tiles = sliding_tiles((4, 4, 4), (2, 2, 2), (1, 1, 1))
    query, key, value = heads(1, 1, 64)
    out = run(query, key, value, tiles, 0.25, CONFIG)
    outside = tiles.rows[1:].flatten().long()
    key, value = key.clone(), value.clone()
    key[:, :, outside], value[:, :, outside] = torch.nan, torch.nan
    inside = tiles.rows[0].long()
    again = run(query, key, value, tiles, 0.25, CONFIG)
    assert torch.equal(out[:, :, inside], again[:, :, inside])


def test_windows_of_tiles() -> None:
    tiles = sliding_tiles((10, 1, 1), (2, 1, 1), (3, 1, 1))
    seen = tiles.allowed()[0, 0].int()
    # Moved inside at the edges, so that each sees three.
    assert seen.tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
    ]
    assert tiles.counts.unique().tolist() == [3]


def test_tiles_hold_neighbours() -> None:
    rows = tile_rows((2, 2, 4), (1, 2, 2))
    assert rows.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    rows = tile_rows((1, 2, 3), (1, 2, 2), before=1, after=5)
    assert rows.tolist() == [
        [0, -1, -1, -1],
        [1, 2, 4, 5],
        [3, -1, 6, -1],
        [7, 8, 9, 10],
        [11, -1, -1, -1],
    ]


@pytest.mark.parametrize("grid", [(21, 30, 52), (21, 45, 80), (13, 30, 45), (7, 11, 13)])
def test_best_tile_wastes_little(grid) -> None:
    tile = best_tile(grid)
    assert prod(tile) <= 128
    places = prod(-(-n // t) for n, t in zip(grid, tile, strict=True)) * 128
    assert prod(grid) / places > 0.75


def test_every_chip_has_configurations() -> None:
    assert all(
        configs(major, head_dim, dtype)
        for major in (8, 9, 10, 12)
        for head_dim in (16, 64, 128, 256)
        for dtype in (torch.bfloat16, torch.float32)
    )


def test_refuses() -> None:
    tiles = sliding_tiles((2, 4, 4), (2, 2, 2), (1, 1, 1))
    query, key, value = heads(1, 2, 33)
    with pytest.raises(ValueError, match="tiles are of 32 tokens, query has 33"):
        kernels.block_sparse_attention(query, key, value, tiles)
    query, key, value = heads(1, 2, 32)
    with pytest.raises(ValueError, match=r"tiles.rows is torch.int64"):
        wrong = tiles._replace(rows=tiles.rows.long())
        kernels.block_sparse_attention(query, key, value, wrong)
    with pytest.raises(ValueError, match=r"window \(2, 1, 1\) on \(5, 2, 2\) tiles"):
        sliding_tiles((10, 4, 4), (2, 2, 2), (2, 1, 1))
    with pytest.raises(ValueError, match="each token from 0 on exactly once"):
        tile_mask(torch.tensor([[0, 1], [1, 2]]), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must be bool \(..., 2, 2\)"):
        tile_mask(torch.tensor([[0, 1], [2, 3]]), torch.ones(3, 3, dtype=torch.bool))
