"""Previews: the fit finds a linear autoencoder's own map; what it shows looks like the video."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinema.runtime import opening
from kinema.runtime.checkpoints.checkpoint import Component, open_checkpoint
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.vaes import preview
from kinema.runtime.vaes.encode import encode_pixels
from kinema.runtime.vaes.preview import Projection
from kinema.world.preview import scenes

CHANNELS = 6


class LinearVAE(nn.Module):
    """Latents that are an invertible linear map of mean colours and three more numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.mix = nn.Parameter(torch.randn(CHANNELS, CHANNELS, generator=generator))
        self.config = SimpleNamespace(latents_mean=None, latents_std=None, scale_factor_spatial=8)

    def encode(self, pixels: torch.Tensor, tile: object = None) -> torch.Tensor:
        grid = (1 + pixels.shape[2] // 4, pixels.shape[3] // 8, pixels.shape[4] // 8)
        colours = preview.colours_of(pixels, grid)
        return torch.einsum("dc,bcfhw->bdfhw", self.mix, torch.cat([colours, colours.sin()], 1))


@pytest.fixture(scope="module")
def embedded():
    checkpoint = open_checkpoint()
    return checkpoint.component("vae"), opening.open_component(
        checkpoint, "vae", torch.device("cpu"), torch.float32
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kinema"


def test_a_linear_autoencoder_is_inverted():
    vae = LinearVAE()
    projection = preview.fit(vae)
    assert projection.r2 > 0.99
    clip = next(preview.patches(vae))
    shown = preview.preview(encode_pixels(vae, clip), projection)
    wanted = 255 * preview.colours_of(clip, shown.shape[:3])[0].permute(1, 2, 3, 0).numpy()
    assert np.abs(shown - wanted).mean() < 3


def test_it_shows_held_out_scenes_of_the_embedded_model(embedded):
    component, vae = embedded
    projection = preview.projection_of(component, vae)
    shown, wanted = [], []
    for clip in scenes(8, seed=99):
        shown.append(preview.preview(encode_pixels(vae, clip), projection))
        colours = preview.colours_of(clip, (9, 8, 8))[0].permute(1, 2, 3, 0)
        wanted.append(255 * colours.numpy())
    assert shown[0].shape == (9, 8, 8, 3) and shown[0].dtype == np.uint8
    assert np.corrcoef(np.ravel(shown), np.ravel(wanted))[0, 1] > 0.85


def test_the_shipped_fit_is_what_the_script_makes(embedded):
    component, vae = embedded
    shipped = json.loads((component.folder / preview.FILE).read_text())
    again = preview.fit(vae, scenes(50))
    assert again.r2 == pytest.approx(shipped["r2"], abs=0.002)
    assert torch.allclose(again.weight, torch.tensor(shipped["weight"]), atol=1e-3)


def test_size_is_as_asked_and_latents_by_default():
    projection = Projection(torch.eye(4)[:, :3], torch.zeros(3), 1.0)
    latents = torch.rand(1, 4, 3, 6, 10)
    assert preview.preview(latents, projection).shape == (3, 6, 10, 3)
    assert preview.preview(latents, projection, (48, 80)).shape == (3, 48, 80, 3)
    exact = (latents[0, :3].permute(1, 2, 3, 0) * 255).round().numpy()
    assert np.array_equal(preview.preview(latents, projection), exact)


def test_colours_beyond_black_and_white_are_clamped():
    projection = Projection(torch.tensor([[9.0, -9.0, 0.0]]), torch.tensor([0.0, 0.0, 0.5]), 1.0)
    shown = preview.preview(torch.ones(1, 1, 1, 1, 1), projection)
    assert shown.ravel().tolist() == [255, 0, 128]


@pytest.mark.parametrize("shape", [(1, 3, 2, 4, 4), (2, 4, 2, 4, 4), (4, 2, 4, 4)])
def test_other_shapes_are_refused(shape):
    projection = Projection(torch.zeros(4, 3), torch.zeros(3), 1.0)
    with pytest.raises(UsageError, match=r"\(1, 4, frames, height, width\) works"):
        preview.preview(torch.zeros(shape), projection)


def test_two_ends_of_a_step_tell_what_it_heads_for():
    clean, noise = torch.randn(2, 1, 3, 2, 4, 4, dtype=torch.float64)
    at = {sigma: (1 - sigma) * clean + sigma * noise for sigma in (0.9, 0.6, 0.0)}
    assert torch.allclose(preview.denoised(at[0.9], at[0.6], 0.9, 0.6), clean)
    assert torch.equal(preview.denoised(at[0.6], at[0.0], 0.6, 0.0), clean)
    with pytest.raises(UsageError, match="a step lowers it"):
        preview.denoised(at[0.6], at[0.6], 0.6, 0.6)


def test_a_fit_is_kept_and_a_damaged_one_made_anew(embedded, cache, tmp_path, monkeypatch):
    shipped, _ = embedded
    folder = tmp_path / "vae"
    folder.mkdir()
    for file in shipped.folder.iterdir():
        if file.name != preview.FILE:
            (folder / file.name).write_bytes(file.read_bytes())
    component, vae = Component(shipped.class_name, folder, shipped.config), LinearVAE()
    first = preview.projection_of(component, vae)
    (kept,) = cache.glob("preview-*.json")

    monkeypatch.setattr(preview, "fit", lambda _: pytest.fail("fitted a second time"))
    again = preview.projection_of(component, vae)
    assert torch.allclose(first.weight, again.weight) and first.r2 == again.r2

    kept.write_text(kept.read_text()[:40])
    monkeypatch.setattr(preview, "fit", lambda _: first)
    assert preview.projection_of(component, vae) is first
    assert torch.allclose(preview.projection_of(component, vae).weight, first.weight)


def test_a_damaged_fit_in_a_checkpoint_is_told(tmp_path):
    (tmp_path / preview.FILE).write_text('{"weight": [[1, 2]], "bias": [0, 0, 0], "r2": 1}')
    with pytest.raises(KinemaError, match=r"cannot read preview.json"):
        preview.projection_of(Component("AutoencoderKLWan", tmp_path, {}), LinearVAE())


def test_colours_are_means_of_what_a_cell_stands_for():
    clip = torch.rand(1, 3, 9, 16, 8) * 2 - 1
    colours = preview.colours_of(clip, (3, 2, 1))
    assert colours[0, :, 0, 0, 0] == pytest.approx(
        (clip[0, :, 0, :8].mean((1, 2)) + 1) / 2, abs=1e-6
    )
    last = F.avg_pool3d(clip[:, :, 5:], (4, 8, 8))[0, :, 0, 1, 0]
    assert colours[0, :, 2, 1, 0] == pytest.approx((last + 1) / 2, abs=1e-6)
