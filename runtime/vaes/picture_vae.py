"""What coding pictures asks of an autoencoder, and the scale of its latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from .geometry import Tile


class PictureVAE(Protocol):
    """Any autoencoder of pictures; `config` has latents_mean and latents_std.

    Latents are raw: on the autoencoder's own scale. Raises `UsageError` for a tile where it can
    work on whole frames alone.
    """

    config: Any

    def parameters(self) -> Iterator[Tensor]:
        """Tensors of the dtype and on the device that it works in."""
        ...

    def decode_chunks(self, latents: Tensor, tile: Tile | None = None) -> Iterator[Tensor]:
        """Pixels (1, 3, frames, H, W) about -1..1 in chunks along time."""
        ...

    def encode(self, pixels: Tensor, tile: Tile | None = None) -> Tensor:
        """Latents (B, C, 1+k, h, w), the likeliest, of pixels (B, 3, 1+4k, H, W) in -1..1."""
        ...

    def encode_chunks(self, chunks: Iterable[Tensor], tile: Tile | None = None) -> Tensor:
        """The same, of pixels that come in chunks along time: one frame, then four at a time."""
        ...


def dtype_of(vae: PictureVAE) -> torch.dtype:
    """The dtype an autoencoder works in."""
    return next(vae.parameters()).dtype


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


def _statistics(latents: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal standard deviation of each channel, to broadcast with the latents."""
    shape = (1, -1, *[1] * (latents.dim() - 2))
    mean = torch.tensor(config.latents_mean).to(latents).view(shape)
    return mean, 1.0 / torch.tensor(config.latents_std).to(latents).view(shape)
