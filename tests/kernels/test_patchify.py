"""patchify against its definition and a convolution, and the laws it keeps."""

from __future__ import annotations

import pytest
import torch

from kinema import kernels
from kinema.kernels import reference
from kinema.kernels.patchify import Tile, run, tiles

SMALL = Tile(16, 16, 16, 4, 1)


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2), (1, 1, 1), (2, 3, 1)])
@pytest.mark.parametrize("channels_first", [True, False])
def test_gathers(dtype, patch, channels_first) -> None:
    latents = torch.randn(2, 3, 4, 6, 6, dtype=dtype)
    tokens = run(latents, list(patch), None, None, channels_first)
    expected = reference.patchify(latents, patch, channels_first=channels_first)
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("latents_dtype", [torch.float32, None])
@pytest.mark.parametrize("channels_first", [True, False])
def test_parity(dtype, latents_dtype, channels_first, truth, assert_as_accurate) -> None:
    latents = torch.randn(2, 5, 2, 6, 10, dtype=latents_dtype or dtype)
    weight, bias = torch.randn(31, 20, dtype=dtype), torch.randn(31)
    tokens = run(latents, [1, 2, 2], weight, bias, channels_first, SMALL)
    rounded = latents.to(dtype)
    options = {"channels_first": channels_first}
    exact = truth(reference.patchify, rounded, (1, 2, 2), weight, bias, **options)
    plain = reference.patchify(latents, (1, 2, 2), weight, bias, **options)
    assert_as_accurate(tokens, plain, exact)


@pytest.mark.parametrize("tile", [*tiles(torch.bfloat16), *tiles(torch.float32)], ids=str)
def test_is_a_convolution(tile) -> None:
    latents, kernel = torch.randn(2, 3, 2, 4, 6), torch.randn(40, 3, 1, 2, 2)
    tokens = run(latents, [1, 2, 2], kernel.flatten(1), None, True, tile)
    expected = torch.nn.functional.conv3d(latents, kernel, stride=(1, 2, 2))
    torch.testing.assert_close(tokens, expected.movedim(1, -1))


def test_strided() -> None:
    latents = torch.randn(2, 4, 6, 3, 10)[..., :8].permute(0, 3, 1, 4, 2)
    weight = torch.randn(12, 40).T
    tokens = run(latents, [1, 2, 2], weight, None, True, SMALL)
    torch.testing.assert_close(tokens, reference.patchify(latents, (1, 2, 2), weight))


def test_no_tokens(dtype) -> None:
    weight = torch.zeros(5, 12, dtype=dtype)
    assert run(torch.zeros(2, 3, 0, 4, 4), [1, 2, 2], weight, None, True).shape == (
        *(2, 0, 2, 2, 5),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": (1, 2)}, r"patch_size=\(1, 2\); three positive sizes"),
        ({"patch_size": (1, 2, 4)}, r"\(2, 4, 6\) .* are not multiples of \(1, 2, 4\)"),
        ({"weight": torch.zeros(5, 7)}, r"weight has shape \(5, 7\); \(d, 12\) works"),
        ({"bias": torch.zeros(5)}, "bias is given without weight"),
        ({"weight": torch.zeros(5, 12), "bias": torch.zeros(4)}, r"bias has shape \(4,\)"),
    ],
)
def test_refuses(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.patchify(torch.zeros(2, 3, 2, 4, 6), **{"patch_size": (1, 2, 2), **options})
