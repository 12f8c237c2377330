"""Pictures to pixels, and pixels to latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .geometry import GROUP, Tile
from .picture_vae import PictureVAE, dtype_of, normalise

if TYPE_CHECKING:
    from PIL.Image import Image


@torch.inference_mode()
def encode_pixels(vae: PictureVAE, pixels: Tensor, tile: Tile | None = None) -> Tensor:
    """Normalised latents (B, C, 1+k, h, w) in fp32 of pixels (B, 3, 1+4k, H, W) in -1..1."""
    return normalise(vae.encode(pixels.to(dtype_of(vae)), tile).float(), vae.config)


@torch.inference_mode()
def encode_chunks(vae: PictureVAE, chunks: Iterable[Tensor], tile: Tile | None = None) -> Tensor:
    """The same of pixels that come in chunks along time, so that no whole clip is in memory."""
    like = next(vae.parameters())
    latents = vae.encode_chunks((chunk.to(like) for chunk in chunks), tile)
    return normalise(latents.float(), vae.config)


def on_grey(pictures: Mapping[int, Tensor], num_frames: int) -> Iterator[Tensor]:
    """Pixels of a clip in chunks of 1, 4, 4, ... frames: pictures (1, 3, H, W) at their frames and
    mid-grey between, as the reference shows a first and a last frame to the autoencoder."""
    if outside := [index for index in pictures if not 0 <= index < num_frames]:
        raise UsageError(f"a picture at frame {outside[0]}; frames are 0 to {num_frames - 1}")
    grey = torch.zeros_like(next(iter(pictures.values())))
    for start, stop in groups(num_frames):
        yield torch.stack([pictures.get(i, grey) for i in range(start, stop)], dim=2)


def to_pixels(picture: Image, height: int, width: int) -> Tensor:
    """Pixels (1, 3, height, width) in -1..1, resized as the reference resizes."""
    from PIL.Image import Resampling

    resized = picture.resize((width, height), resample=Resampling.LANCZOS)
    array = np.asarray(resized, dtype=np.float32) / 255.0
    return 2.0 * torch.from_numpy(array).permute(2, 0, 1)[None].contiguous() - 1.0


def groups(num_frames: int) -> Iterator[tuple[int, int]]:
    """Where the chunks of a clip, 1 and 4 and 4 ... frames, start and stop."""
    yield 0, 1
    for start in range(1, num_frames, GROUP):
        yield start, start + GROUP
