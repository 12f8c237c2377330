"""The embedded model's autoencoder: causal, streamed in chunks, and strict about what fits."""

import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.vaes.kinema import AutoencoderKinema, KinemaVAEConfig

CONFIG = KinemaVAEConfig(z_dim=4, encoder_dim=8, decoder_dim=8, frame_dim=8, pixel_dim=4)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKinema(CONFIG).eval()


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 16, 24), (5, 24, 16), (13, 8, 40)])
def test_shapes_there_and_back(vae, frames, height, width):
    pixels = torch.randn(2, 3, frames, height, width)
    with torch.inference_mode():
        latents = vae.encode(pixels)
        assert latents.shape == (2, 4, 1 + (frames - 1) // 4, height // 8, width // 8)
        assert vae.decode(latents).shape == pixels.shape


def test_an_image_is_the_first_frame_of_a_clip(vae):
    """Causal: what comes later changes nothing. Convolutions over other batch sizes may round
    differently, so equality is to a few units of fp32."""
    pixels = torch.randn(1, 3, 9, 16, 16)
    with torch.inference_mode():
        whole, alone = vae.encode(pixels), vae.encode(pixels[:, :, :1])
    torch.testing.assert_close(whole[:, :, :1], alone, rtol=1e-5, atol=1e-5)


def test_chunks_are_the_whole(vae):
    latents = torch.randn(1, 4, 4, 3, 2)
    with torch.inference_mode():
        chunks = list(vae.decode_chunks(latents))
        whole = vae.decode(latents)
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]
    torch.testing.assert_close(torch.cat(chunks, 2), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4, 16, 16), (1, 3, 5, 12, 16), (1, 3, 5, 16, 20)])
def test_what_does_not_fit_is_refused(vae, shape):
    with pytest.raises(UsageError, match="do not fit"):
        vae.encode(torch.zeros(shape))
