"""qk_norm_rope against its definition, against diffusers' rotation, and the laws it keeps."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import reference
from kinema.kernels.qk_norm_rope import run, tiles
from kinema.kernels.rope import Rope, rope_of_tokens, rope_tables

GRID, PAIRS = (2, 3, 2), (4, 2, 2)  # 12 tokens, head dim 16


def launch(
    q,
    k,
    rope=None,
    norm="rms_across_heads",
    q_weight=None,
    k_weight=None,
    q_bias=None,
    k_bias=None,
    eps=1e-6,
    interleaved=False,
    start=0,
    layout="blnd",
    tile=None,
):
    """The kernel's outputs, with the definition's defaults."""
    rope = rope or Rope(None, None, (1, 1, 1), (0, 0, 0))
    return run(
        q, k, rope.cos, rope.sin, list(rope.grid), list(rope.pairs), norm, q_weight, k_weight,
        q_bias, k_bias, eps, interleaved, start, layout, tile,
    )  # fmt: skip


def packed(length=12, heads=3, head_dim=16, dtype=torch.float32):
    """q and k as views of one packed product."""
    return torch.randn(2, length, 3, heads, head_dim, dtype=dtype).unbind(2)[:2]


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("norm", ["rms_across_heads", "rms_per_head", "layer_per_head"])
def test_parity(dtype, norm, interleaved, truth, assert_as_accurate) -> None:
    q, k = packed(dtype=dtype)
    size = 48 if norm == "rms_across_heads" else 16
    options = {name: torch.randn(size) for name in ("q_weight", "k_weight", "q_bias", "k_bias")}
    options |= {"norm": norm, "interleaved": interleaved}
    rope = rope_tables(GRID, PAIRS)
    exact = truth(reference.qk_norm_rope, q, k, rope, **options)
    plain = reference.qk_norm_rope(q, k, rope, **options)
    for ours, theirs, true in zip(launch(q, k, rope, **options), plain, exact, strict=True):
        assert_as_accurate(ours, theirs, true)


@pytest.mark.parametrize(("start", "length"), [(0, 19), (7, 19), (3, 17)])
def test_text_stays_unrotated(start, length) -> None:
    q, k = packed(length)
    rope = rope_tables(GRID, PAIRS)
    with_rope, without = launch(q, k, rope, start=start), launch(q, k)
    for turned, still in zip(with_rope, without, strict=True):
        assert torch.equal(turned[:, :, :start], still[:, :, :start])
        assert torch.equal(turned[:, :, start + 12 :], still[:, :, start + 12 :])
        assert not torch.equal(turned[:, :, start + 1], still[:, :, start + 1])


@pytest.mark.parametrize("layout", ["blnd", "bnld"])
def test_layouts(layout) -> None:
    q, k = packed()
    query, key = launch(q, k, layout=layout)
    expected, _ = reference.qk_norm_rope(q, k)
    torch.testing.assert_close(query, expected)
    assert (query if layout == "bnld" else query.transpose(1, 2)).is_contiguous()
    assert key.stride() == query.stride()


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (5, 6), (3, 48), (12, 128)])
@pytest.mark.parametrize("norm", ["rms_across_heads", "layer_per_head"])
def test_awkward_heads(heads, head_dim, norm, truth, assert_as_accurate) -> None:
    q, k = packed(3, heads, head_dim)
    rope = rope_tables((3, 1, 1), (head_dim // 2, 0, 0))
    exact = truth(reference.qk_norm_rope, q, k, rope, norm=norm)
    plain = reference.qk_norm_rope(q, k, rope, norm=norm)
    for tile in tiles(heads, head_dim, norm.endswith("across_heads")):
        for ours, theirs, true in zip(
            launch(q, k, rope, norm, tile=tile), plain, exact, strict=True
        ):
            assert_as_accurate(ours, theirs, true)


def test_heads_that_rotate_differently(truth, assert_as_accurate) -> None:
    q, k = packed()
    rope = rope_tables(GRID, (8, 8, 8))  # 24 pairs: those of all three heads
    exact = truth(reference.qk_norm_rope, q, k, rope)
    plain = reference.qk_norm_rope(q, k, rope)
    assert_as_accurate(launch(q, k, rope)[0], plain[0], exact[0])
    assert_as_accurate(launch(q, k, rope, "rms_per_head")[1], *_per_head(q, k, rope, truth))


def _per_head(q, k, rope, truth):
    plain = reference.qk_norm_rope(q, k, rope, norm="rms_per_head")
    return plain[1], truth(reference.qk_norm_rope, q, k, rope, norm="rms_per_head")[1]


def test_strided() -> None:
    q = torch.randn(12, 3, 2, 32)[..., ::2].permute(2, 0, 1, 3)
    k = torch.randn(1, 1, 3, 16).expand(2, 12, 3, 16)
    rope = rope_tables(GRID, PAIRS)
    for ours, expected in zip(launch(q, k, rope), reference.qk_norm_rope(q, k, rope), strict=True):
        torch.testing.assert_close(ours, expected)


def test_as_diffusers_rotates() -> None:
    apply_rotary_emb = pytest.importorskip("diffusers.models.embeddings").apply_rotary_emb
    q, k = packed()
    rope = rope_tables(GRID, PAIRS)
    cos, sin = (table[:, 0] for table in rope_of_tokens(rope, 16))
    query, _ = launch(q, k, rope, interleaved=True)
    unrotated, _ = launch(q, k)
    tables = cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    torch.testing.assert_close(query, apply_rotary_emb(unrotated, tables))


def test_rotation_keeps_lengths_and_relative_places() -> None:
    rope = rope_tables((12, 1, 1), (8, 0, 0))
    same = torch.randn(1, 1, 3, 16).expand(2, 12, 3, 16)
    query, key = launch(same, same, rope)
    torch.testing.assert_close(query.norm(dim=-1), launch(same, same)[0].norm(dim=-1))
    scores = query @ key.transpose(-1, -2)  # of equal tokens: a function of their distance
    torch.testing.assert_close(scores[..., 1:, 1:], scores[..., :-1, :-1], atol=1e-4, rtol=1e-4)


def test_halves_are_interleaved_pairs_permuted() -> None:
    q, k = packed()
    rope = rope_tables(GRID, PAIRS)
    order = torch.arange(16).view(8, 2).T.flatten()
    interleaved, _ = launch(q, k, rope, interleaved=True)
    halves, _ = launch(q[..., order], k[..., order], rope)
    torch.testing.assert_close(halves, interleaved[..., order])


@pytest.mark.parametrize("length", [1, 31, 127])
def test_any_token_count(length) -> None:
    q, k = packed(length, 1, 4)
    rope = rope_tables((length, 1, 1), (2, 0, 0))
    torch.testing.assert_close(launch(q, k, rope)[1], reference.qk_norm_rope(q, k, rope)[1])


def test_no_tokens() -> None:
    q, k = packed(0)
    assert launch(q, k)[0].shape == (2, 3, 0, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "rms"}, "norm='rms' is not known; rms_across_heads, "),
        ({"layout": "lbnd"}, "layout='lbnd' is not known; blnd, bnld work"),
        ({"q_weight": torch.ones(16)}, r"q_weight has shape \(16,\); \(48,\) works"),
        (
            {"rope": rope_tables((2, 3, 3), PAIRS)},
            r"\(2, 3, 3\) from token 0 does not lie within 12",
        ),
        ({"rope": rope_tables(GRID, PAIRS), "start": 1}, "from token 1 does not lie within 12"),
        ({"rope": rope_tables(GRID, (4, 2, 1))}, r"are 7; 8, half of the head's channels, or 24"),
        ({"rope": rope_tables(GRID, PAIRS, device="meta")}, "must be contiguous and on cpu"),
    ],
)
def test_refuses(options, message) -> None:
    q, k = packed()
    with pytest.raises(ValueError, match=message):
        kernels.qk_norm_rope(q, k, **options)


def test_refuses_odd_heads_and_unlike_keys() -> None:
    q, k = packed(head_dim=15)
    with pytest.raises(ValueError, match="with an even D"):
        kernels.qk_norm_rope(q, k)
    with pytest.raises(ValueError, match="k has shape"):
        kernels.qk_norm_rope(packed()[0], packed(11)[1])
