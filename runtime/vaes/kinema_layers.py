"""The layers of the embedded model's autoencoder: an encoder, a decoder, and what both are made of.

Shape legend: N pictures, B batch, G groups (latent frames), C channels, H W of the picture, h w of
the latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import GROUP

if TYPE_CHECKING:
    from .kinema import KinemaVAEConfig


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (N, C, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two normed 3x3 convolutions beside the identity, on single pictures (N, C, h, w)."""

    def __init__(self, dim: int, inputs: int = 1) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(dim), ChannelNorm(dim)
        self.conv1 = nn.Conv2d(inputs * dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class CausalBlock(ResBlock):
    """A `ResBlock` whose first convolution also sees the group before; carries it between calls."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, inputs=2)

    def forward(  # type: ignore[override]
        self, x: Tensor, batch: int, before: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden = F.silu(self.norm1(x))
        both, last = with_group_before(hidden, batch, before)
        hidden = self.conv1(both)
        return x + self.conv2(F.silu(self.norm2(hidden))), last


def with_group_before(x: Tensor, batch: int, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B*G, C, h, w) to (B*G, 2C, h, w): each group beside its predecessor; also the last group.

    The first group's predecessor is `before`, or itself where nothing came before.
    """
    groups = x.unflatten(0, (batch, -1))
    first = groups[:, :1] if before is None else before
    shifted = torch.cat([first, groups[:, :-1]], 1).flatten(0, 1)
    return torch.cat([x, shifted], 1), groups[:, -1:]


class Encoder(nn.Module):
    """Groups of frames to latent frames."""

    def __init__(self, config: KinemaVAEConfig) -> None:
        super().__init__()
        dim, frame = config.encoder_dim, config.frame_dim
        self.conv_in = nn.Conv2d(3 * 16, frame, 3, padding=1)
        self.frame_block = ResBlock(frame)
        self.merge = nn.Conv2d(GROUP * frame, dim, 2, stride=2)
        self.blocks = nn.ModuleList(CausalBlock(dim) for _ in range(2))
        self.norm_out = ChannelNorm(dim)
        self.conv_out = nn.Conv2d(dim, config.z_dim, 1)

    def forward(
        self, frames: Tensor, batch: int, before: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Frames (B*G*GROUP, 3, H, W) to latents (B*G, z_dim, h, w), and state for the next."""
        x = self.frame_block(self.conv_in(F.pixel_unshuffle(frames, 4)))
        x = self.merge(x.unflatten(0, (-1, GROUP)).flatten(1, 2))
        last = []
        for i, block in enumerate(self.blocks):
            x, kept = block(x, batch, before[i] if before else None)
            last.append(kept)
        return self.conv_out(F.silu(self.norm_out(x))), last


class Decoder(nn.Module):
    """Latent frames to groups of frames."""

    def __init__(self, config: KinemaVAEConfig) -> None:
        super().__init__()
        dim, frame, pixel = config.decoder_dim, config.frame_dim, config.pixel_dim
        self.conv_in = nn.Conv2d(config.z_dim, dim, 3, padding=1)
        self.causal_blocks = nn.ModuleList(CausalBlock(dim) for _ in range(2))
        self.block = ResBlock(dim)
        self.split = nn.Conv2d(dim, GROUP * frame * 4, 1)
        self.frame_blocks = nn.ModuleList(ResBlock(frame) for _ in range(3))
        self.grow = nn.Conv2d(frame, pixel * 4, 3, padding=1)
        self.pixel_block = ResBlock(pixel)
        self.norm_out = ChannelNorm(pixel)
        self.conv_out = nn.Conv2d(pixel, 3 * 4, 3, padding=1)

    def forward(
        self, latents: Tensor, batch: int, before: list[Tensor] | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Latents (B*G, z_dim, h, w) to frames (B*G*GROUP, 3, H, W), and state for the next."""
        x = self.conv_in(latents)
        last = []
        for i, block in enumerate(self.causal_blocks):
            x, kept = block(x, batch, before[i] if before else None)
            last.append(kept)
        x = F.pixel_shuffle(self.split(self.block(x)), 2)
        x = x.unflatten(1, (GROUP, -1)).flatten(0, 1)
        for block in self.frame_blocks:
            x = block(x)
        x = self.pixel_block(F.pixel_shuffle(self.grow(x), 2))
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), 2), last
