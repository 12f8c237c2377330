"""Latents to pictures and sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .audio import KinemaSound

Tile = tuple[int, int]


class PictureVAE(Protocol):
    """What coding pictures asks of an autoencoder; `config` has latents_mean and latents_std.

    Latents are raw: on the autoencoder's own scale. One that can work in tiles (height, width)
    takes `tile` beside latents and pixels.
    """

    config: Any

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Pixels (1, 3, frames, H, W) about -1..1 in chunks along time."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, C, 1+k, h, w), the likeliest, of pixels (B, 3, 1+4k, H, W) in -1..1."""
        ...


@torch.inference_mode()
def decode_frames(
    vae: PictureVAE, latents: Tensor, tile: Tile | None = None
) -> Iterator[np.ndarray]:
    """Frames of normalised latents (1, C, F, H, W) in chunks, uint8 (frames, height, width, 3).

    A chunk is what one latent frame holds; a frame is `round(255 x)` of the reference's picture.
    """
    tiled = {} if tile is None else {"tile": tile}
    raw = denormalise(latents.to(dtype_of(vae)), vae.config)
    for pixels in vae.decode_chunks(raw, **tiled):
        yield to_uint8(pixels[0])


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels (3, frames, H, W) about -1..1 to frames uint8 (frames, H, W, 3)."""
    picture = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return picture.mul(255).round().to(torch.uint8).cpu().numpy()


def denormalise(latents: Tensor, config: Any) -> Tensor:
    """Latents (B, C, ...) of zero mean and unit variance to the autoencoder's own scale."""
    if config.latents_mean is None:
        return latents
    mean, scale = _statistics(latents, config)
    return latents / scale + mean  # in the reference's order of operations


def normalise(latents: Tensor, config: Any) -> Tensor:
    """Latents (B, C, ...) on the autoencoder's own scale to zero mean and unit variance."""
    if config.latents_mean is None:
        return latents
    mean, scale = _statistics(latents, config)
    return (latents - mean) * scale  # in the reference's order of operations


def dtype_of(vae: Any) -> torch.dtype:
    """The dtype an autoencoder works in."""
    return next(vae.parameters()).dtype


def _statistics(latents: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of each channel, to broadcast with the latents."""
    shape = (1, -1, *[1] * (latents.dim() - 2))
    mean = torch.tensor(config.latents_mean).to(latents).view(shape)
    return mean, 1.0 / torch.tensor(config.latents_std).to(latents).view(shape)


@torch.inference_mode()
def decode_sound(codec: KinemaSound, rows: Tensor, num_samples: int) -> np.ndarray:
    """The waveform of latent rows of sound, float32 (num_samples, 1)."""
    wave = codec.decode(codec.from_rows(rows)[0], num_samples)
    return wave[:, None].cpu().numpy()
