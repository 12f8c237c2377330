"""Latents to pictures and sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .geometry import Tile
from .picture_vae import PictureVAE, denormalise, dtype_of

if TYPE_CHECKING:
    from .audio import KinemaSound


@torch.inference_mode()
def decode_frames(
    vae: PictureVAE, latents: Tensor, tile: Tile | None = None
) -> Iterator[np.ndarray]:
    """Frames of normalised latents (1, C, F, H, W) in chunks, uint8 (frames, height, width, 3).

    A chunk is what one latent frame holds; a frame is `round(255 x)` of the reference's picture.
    """
    raw = denormalise(latents.to(dtype_of(vae)), vae.config)
    for pixels in vae.decode_chunks(raw, tile):
        yield to_uint8(pixels[0])


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels (3, frames, H, W) about -1..1 to frames uint8 (frames, H, W, 3)."""
    picture = (pixels.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0)
    return picture.mul(255).round().to(torch.uint8).cpu().numpy()


@torch.inference_mode()
def decode_sound(codec: KinemaSound, rows: Tensor, num_samples: int) -> np.ndarray:
    """The waveform of latent rows of sound, float32 (num_samples, 1)."""
    wave = codec.decode(codec.from_rows(rows)[0], num_samples)
    return wave[:, None].cpu().numpy()
