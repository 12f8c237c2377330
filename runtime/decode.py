"""Latents to pictures and sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .audio import KinemaSound


class PictureVAE(Protocol):
    """What decoding asks of an autoencoder; `config` has latents_mean and latents_std."""

    config: Any

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Pixels (1, 3, frames, H, W) about -1..1 in chunks along time, of raw latents."""


@torch.inference_mode()
def decode_frames(vae: PictureVAE, latents: Tensor) -> Iterator[np.ndarray]:
    """Frames of normalised latents (1, C, F, H, W) in chunks, uint8 (frames, height, width, 3).

    A chunk is what one latent frame holds; a frame is `round(255 x)` of the reference's picture.
    """
    for pixels in vae.decode_chunks(denormalise(latents, vae.config)):
        picture = (pixels[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
        yield picture.mul(255).round().to(torch.uint8).cpu().numpy()


def denormalise(latents: Tensor, config: Any) -> Tensor:
    """Latents (B, C, ...) of zero mean and unit variance to the autoencoder's own scale."""
    if config.latents_mean is None:
        return latents
    shape = (1, -1, *[1] * (latents.dim() - 2))
    mean = torch.tensor(config.latents_mean).to(latents).view(shape)
    std = torch.tensor(config.latents_std).to(latents).view(shape)
    return latents / (1.0 / std) + mean  # in the reference's order of operations


@torch.inference_mode()
def decode_sound(codec: KinemaSound, rows: Tensor, num_samples: int) -> np.ndarray:
    """The waveform of latent rows of sound, float32 (num_samples, 1)."""
    wave = codec.decode(codec.from_rows(rows)[0], num_samples)
    return wave[:, None].cpu().numpy()
