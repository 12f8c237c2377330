"""norm_silu against its definition, diffusers' norm, and the laws it keeps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kinema import kernels
from kinema.kernels import reference
from kinema.kernels.norm_silu import Tile, run

TILES = (None, Tile(4, 1))


def launch(x, weight=None, bias=None, norm="rms", groups=4, eps=1e-6, padding=(0, 0, 0),
           before=None, repeat_first=False, tile=None):  # fmt: skip
    """The kernel's output, with the definition's defaults."""
    return run(x, weight, bias, norm, groups, eps, list(padding), before, repeat_first, tile)


@pytest.mark.parametrize("norm", ["rms", "group"])
@pytest.mark.parametrize("fill", ["zeros", "before", "repeat_first"])
def test_parity(dtype, norm, fill, truth, assert_as_accurate) -> None:
    x = torch.randn(2, 12, 3, 4, 5).add(1).to(dtype)
    weight, bias = torch.randn(2, 12)
    options = {"norm": norm, "groups": 4, "padding": (2, 1, 1)}
    options |= {
        "zeros": {},
        "before": {"before": torch.randn(2, 12, 2, 4, 5, dtype=dtype)},
        "repeat_first": {"repeat_first": True},
    }[fill]
    exact = truth(reference.norm_silu, x, weight, bias, **options)
    plain = reference.norm_silu(x, weight, bias, **options)
    assert_as_accurate(launch(x, weight, bias, **options), plain, exact)


@pytest.mark.parametrize("padding", [(0, 0, 0), (1, 0, 2), (0, 3, 0)])
@pytest.mark.parametrize("channels", [1, 31, 96])
@pytest.mark.parametrize("tile", TILES)
def test_any_size(padding, channels, tile) -> None:
    x = torch.randn(1, channels, 2, 3, 7)
    for norm in ("rms", "group"):
        options = {"norm": norm, "groups": 1, "padding": padding}
        torch.testing.assert_close(
            launch(x, tile=tile, **options), reference.norm_silu(x, **options)
        )


def test_many_parts(truth, assert_as_accurate) -> None:
    """Groups of more pixels than one program reads, far from zero."""
    x = torch.randn(1, 6, 3, 17, 19).add(100)
    options = {"norm": "group", "groups": 3}
    exact = truth(reference.norm_silu, x, **options)
    ours = launch(x, tile=Tile(4, 1), **options)
    assert_as_accurate(ours, reference.norm_silu(x, **options), exact)


@pytest.mark.parametrize("layout", ["channels_last", "slice", "broadcast"])
def test_strided(layout) -> None:
    x = {
        "channels_last": torch.randn(2, 3, 4, 5, 8).permute(0, 4, 1, 2, 3),
        "slice": torch.randn(2, 16, 3, 4, 10)[:, ::2, :, :, 5:],
        "broadcast": torch.randn(2, 8, 1, 4, 5).expand(2, 8, 3, 4, 5),
    }[layout]
    before = torch.randn(2, 2, 4, 5, 8).permute(0, 4, 1, 2, 3)[:, :, :, :, : x.shape[4]]
    for norm in ("rms", "group"):
        options = {"norm": norm, "groups": 4, "padding": (2, 1, 1), "before": before}
        ours = launch(x, **options)
        torch.testing.assert_close(ours, reference.norm_silu(x, **options))
        assert ours.is_contiguous(memory_format=torch.channels_last_3d)


def test_as_wan_norms() -> None:
    wan = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    norm = wan.WanRMS_norm(8, images=False)
    torch.nn.init.normal_(norm.gamma)
    x = torch.randn(1, 8, 2, 3, 4)
    x[:, :, 0, 0, 0] = 0
    ours = launch(x, norm.gamma.detach().flatten(), eps=1e-24)
    torch.testing.assert_close(ours, F.silu(norm(x)).detach())


def test_as_pytorch_norms_groups() -> None:
    x, weight, bias = torch.randn(2, 12, 2, 3, 4), torch.randn(12), torch.randn(12)
    expected = F.silu(F.group_norm(x, 4, weight, bias, 1e-6))
    torch.testing.assert_close(launch(x, weight, bias, "group"), expected)


def test_chunks_join() -> None:
    """Frames in two calls, the second given the first's last, are those of one call."""
    x, weight = torch.randn(1, 8, 5, 3, 4), torch.randn(8)
    whole = launch(x, weight, padding=(2, 1, 1))
    first = launch(x[:, :, :3], weight, padding=(2, 1, 1))
    kept = first[:, :, -2:, 1:-1, 1:-1]
    second = launch(x[:, :, 3:], weight, padding=(2, 1, 1), before=kept)
    assert torch.equal(torch.cat([first, second[:, :, 2:]], 2), whole)


def test_no_pixels(dtype) -> None:
    assert launch(torch.empty(0, 8, 2, 3, 4, dtype=dtype)).shape == (0, 8, 2, 3, 4)


X = torch.zeros(1, 6, 2, 3, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm='batch' is not known; rms, group work"),
        ({"norm": "group", "groups": 4}, "groups=4 do not divide 6 channels"),
        ({"padding": (1, 1)}, r"padding=\(1, 1\); \(frames before, rows, columns\)"),
        ({"weight": torch.zeros(5)}, r"weight has shape \(5,\); \(6,\) works"),
        ({"before": X, "padding": (1, 0, 0)}, r"before has shape .*; \(1, 6, 1, 3, 4\) works"),
        ({"before": X, "padding": (2, 0, 0), "repeat_first": True}, "give one"),
    ],
)
def test_refuses(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.norm_silu(X, **options)
