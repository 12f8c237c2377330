"""Latents to frames: the reference's picture, rounded, chunk by chunk."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kinema.runtime.vaes.decode import decode_frames, to_uint8
from kinema.runtime.vaes.picture_vae import denormalise, normalise
from kinema.runtime.vaes.wan import WanVAE

CONFIG = SimpleNamespace(latents_mean=[0.5, -1.25, 3.0], latents_std=[2.0, 0.3, 1.7])


class Doubling(torch.nn.Module):
    """An autoencoder that shows its raw latents, one frame a chunk."""

    config = CONFIG

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones((), dtype=dtype))
        self.seen = []

    def decode_chunks(self, latents, tile=None):
        self.seen.append((latents.dtype, tile))
        yield from latents.split(1, dim=2)


def test_scales_are_each_others_inverse_and_in_the_references_order():
    latents = torch.randn(2, 3, 2, 4, 5)
    mean, std = (
        torch.tensor(x).view(1, 3, 1, 1, 1) for x in (CONFIG.latents_mean, CONFIG.latents_std)
    )
    assert torch.equal(denormalise(latents, CONFIG), latents / (1.0 / std) + mean)
    assert torch.equal(normalise(latents, CONFIG), (latents - mean) * (1.0 / std))
    torch.testing.assert_close(normalise(denormalise(latents, CONFIG), CONFIG), latents)
    bare = SimpleNamespace(latents_mean=None, latents_std=None)
    assert denormalise(latents, bare) is latents and normalise(latents, bare) is latents


def test_frames_are_rounded_and_clamped():
    values = torch.tensor([-3.0, -1.0, -0.002, 0.0, 0.5, 1.0, 1.7])
    frames = to_uint8(values.view(1, 1, 1, -1).expand(3, 2, 1, -1))
    assert frames.shape == (2, 1, 7, 3) and frames.dtype == np.uint8
    assert frames[1, 0, :, 2].tolist() == [0, 0, 127, 128, 191, 255, 255]


def test_chunks_come_as_they_are_asked_for():
    vae = Doubling()
    chunks = decode_frames(vae, torch.zeros(1, 3, 4, 2, 2))
    assert next(chunks).shape == (1, 2, 2, 3)
    assert vae.seen == [(torch.float32, None)]
    assert len(list(chunks)) == 3


def test_a_tile_is_handed_on_and_the_autoencoder_works_in_its_own_type():
    vae = Doubling(torch.bfloat16)
    list(decode_frames(vae, torch.zeros(1, 3, 1, 2, 2), tile=(16, 32)))
    assert vae.seen == [(torch.bfloat16, (16, 32))]


@pytest.mark.parametrize("tile", [None, (16, 24)])
def test_frames_are_the_references(tile):
    """As `WanPipeline` ends: latents scaled, decoded, and made a picture by its processor."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.video_processor import VideoProcessor

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(
        base_dim=4, z_dim=3, num_res_blocks=1,
        latents_mean=CONFIG.latents_mean, latents_std=CONFIG.latents_std,
    ).eval()  # fmt: skip
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(40)  # so that some of the picture is clamped
    latents = torch.randn(1, 3, 3, 5, 4)
    ours = np.concatenate(list(decode_frames(WanVAE(vae), latents, tile=tile)))
    with torch.inference_mode():
        decoded = vae.decode(denormalise(latents, vae.config)).sample
    picture = VideoProcessor(vae_scale_factor=8).postprocess_video(decoded, output_type="np")[0]
    wanted = (picture * 255).round().astype(np.uint8)
    assert ours.shape == (9, 40, 32, 3)
    assert 0 in ours and 255 in ours and len(np.unique(ours)) > 100
    if tile is None:
        assert np.array_equal(ours, wanted)
    else:  # a value on the edge between two may fall to the other side
        assert np.abs(ours.astype(int) - wanted).max() <= 1
        assert (ours != wanted).mean() < 1e-3
