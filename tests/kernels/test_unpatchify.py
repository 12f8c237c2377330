"""unpatchify and its head against their definition, and the laws they keep."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import reference, torch_backend
from kinema.kernels.patchify import Tile
from kinema.kernels.patchify import run as run_patchify
from kinema.kernels.unpatchify import run, tiles

SMALL = Tile(16, 16, 16, 4, 1)


def launch(
    tokens,
    patch,
    weight=None,
    bias=None,
    scale=None,
    shift=None,
    norm=None,
    norm_weight=None,
    norm_bias=None,
    eps=1e-6,
    channels_first=True,
    tile=SMALL,
):
    """The kernel's output, with the definition's defaults."""
    return run(
        tokens, patch, weight, bias, scale, shift, norm, norm_weight, norm_bias, eps,
        channels_first, tile,
    )  # fmt: skip


@pytest.mark.parametrize("patch", [[1, 2, 2], [2, 2, 2], [1, 1, 1], [2, 3, 1]])
@pytest.mark.parametrize("channels_first", [True, False])
def test_undoes_patchify(dtype, patch, channels_first) -> None:
    latents = torch.randn(2, 3, 4, 6, 6, dtype=dtype)
    tokens = run_patchify(latents, patch, None, None, channels_first)
    assert torch.equal(launch(tokens, patch, channels_first=channels_first), latents)


@pytest.mark.parametrize("norm", ["layer", "rms", None])
@pytest.mark.parametrize("modulation", [(2, 1, 1, 1, 40), (2, 2, 1, 1, 40), (2, 2, 2, 3, 40)])
def test_head(dtype, norm, modulation, truth, assert_as_accurate) -> None:
    tokens = torch.randn(2, 2, 2, 3, 40).add(1).to(dtype)
    weight, bias = torch.randn(20, 40, dtype=dtype), torch.randn(20)
    scale, shift = torch.randn(2, *modulation)
    options = {"scale": scale, "shift": shift, "norm": norm, "channels_first": False}
    latents = launch(tokens, [1, 2, 2], weight, bias, **options)
    exact = truth(reference.unpatchify, tokens, (1, 2, 2), weight, bias, **options)
    # As in PyTorch, what enters the product is rounded to the tokens' dtype.
    plain = torch_backend.unpatchify(tokens, (1, 2, 2), weight, bias, **options)
    assert_as_accurate(latents, plain, exact)


def test_affine_norm(truth, assert_as_accurate) -> None:
    tokens, weight, vector = torch.randn(1, 1, 2, 3, 40), torch.randn(4, 40), torch.randn(40)
    options = {"norm": "layer", "norm_weight": vector, "norm_bias": vector}
    exact = truth(reference.unpatchify, tokens, (1, 2, 2), weight, **options)
    plain = reference.unpatchify(tokens, (1, 2, 2), weight, **options)
    assert_as_accurate(launch(tokens, [1, 2, 2], weight, **options), plain, exact)


@pytest.mark.parametrize("width", [1, 31, 1023])
@pytest.mark.parametrize("tile", [*tiles(torch.bfloat16), *tiles(torch.float32)], ids=str)
def test_any_width_far_from_zero(width, tile, truth, assert_as_accurate) -> None:
    tokens = torch.randn(1, 1, 3, 5, width).add(100)
    weight = torch.randn(4, width)
    exact = truth(reference.unpatchify, tokens, (1, 2, 2), weight, norm="layer", eps=1e-3)
    plain = reference.unpatchify(tokens, (1, 2, 2), weight, norm="layer", eps=1e-3)
    ours = launch(tokens, [1, 2, 2], weight, norm="layer", eps=1e-3, tile=tile)
    assert_as_accurate(ours, plain, exact)


def test_strided() -> None:
    tokens = torch.randn(3, 2, 2, 2, 80).permute(1, 2, 3, 0, 4)[..., ::2]
    weight, table = torch.randn(40, 20).T, torch.randn(2, 6, 40)
    options = {"scale": table[:, None, None, None, 1], "norm": "rms"}
    torch.testing.assert_close(
        launch(tokens, [1, 2, 2], weight, **options),
        reference.unpatchify(tokens, (1, 2, 2), weight, **options),
    )


def test_no_tokens(dtype) -> None:
    tokens = torch.empty(2, 0, 2, 3, 12, dtype=dtype)
    assert launch(tokens, [1, 2, 2]).shape == (2, 3, 0, 4, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm='batch' is not known; None, layer, rms work"),
        ({"norm": "rms"}, "norm given without weight"),
        ({"patch_size": (1, 2, 4)}, r"12 values do not fill patches of \(1, 2, 4\)"),
        ({"weight": torch.zeros(8, 7)}, r"weight has shape \(8, 7\); \(C\*p\*q\*r, 12\) works"),
        ({"weight": torch.zeros(8, 12), "scale": torch.zeros(5, 12)}, "scale has shape"),
    ],
)
def test_refuses(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.unpatchify(torch.zeros(2, 1, 2, 3, 12), **{"patch_size": (1, 2, 2), **options})
