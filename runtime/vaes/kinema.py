"""The autoencoder of the embedded model: small, causal, streamed one latent frame at a time.

Frames come in groups of four: the first frame is repeated to fill the first group, so 1 + 4k frames
make 1 + k latent frames and an image is a clip of one. A group sees itself and the group before it
at each of a few causal layers; everything else works on single frames with plain 2D convolutions,
which are by far the fastest form on a CPU.

Shape legend: B batch, C channels, F frames, H W of the picture, h w of the latents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoints.configs import ComponentConfig
from .geometry import GROUP, Tile
from .kinema_layers import Decoder, Encoder
from .streaming import Streaming


@dataclass(frozen=True)
class KinemaVAEConfig(ComponentConfig):
    """The fields of a vae/config.json of class `AutoencoderKinema`."""

    OF = "autoencoder"

    z_dim: int = 16
    encoder_dim: int = 96
    decoder_dim: int = 128
    frame_dim: int = 64
    pixel_dim: int = 32
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None


class AutoencoderKinema(Streaming, nn.Module):
    """Pixels (B, 3, 1+4k, H, W) in -1..1 to latents (B, z_dim, 1+k, H/8, W/8), and back.

    Latents are not normalised, pixels not clamped. Memory is the last group that each causal layer
    has seen: (B, 1, C, h, w).
    """

    def __init__(self, config: KinemaVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def decode_first(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        pixels, memory = self._decode(latents, None)
        return pixels[:, :, GROUP - 1 :], memory

    def decode_next(self, latents: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self._decode(latents, list(memory))

    def encode_first(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self._encode(pixels.expand(-1, -1, GROUP, -1, -1), None)

    def encode_next(self, pixels: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return self._encode(pixels, list(memory))

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of a whole clip at once, as in training."""
        return self.decode_first(latents)[0]

    def encode(self, pixels: Tensor, tile: Tile | None = None) -> Tensor:
        """Latents of a whole clip at once; raises `UsageError` where frames or sizes do not fit."""
        self.check(pixels)
        self.refuse(tile)
        first = pixels[:, :, :1].expand(-1, -1, GROUP - 1, -1, -1)
        return self._encode(torch.cat([first, pixels], dim=2), None)[0]

    def _decode(self, latents: Tensor, before: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        frames, memory = self.decoder(_pictures(latents), latents.shape[0], before)
        return _clips(frames, latents.shape[0]), memory

    def _encode(self, pixels: Tensor, before: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        latents, memory = self.encoder(_pictures(pixels), pixels.shape[0], before)
        return _clips(latents, pixels.shape[0]), memory


def _pictures(clips: Tensor) -> Tensor:
    """(B, C, F, H, W) to (B*F, C, H, W), channels last in memory."""
    return clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _clips(pictures: Tensor, batch: int) -> Tensor:
    """(B*F, C, H, W) to (B, C, F, H, W)."""
    return pictures.unflatten(0, (batch, -1)).transpose(1, 2)
