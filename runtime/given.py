"""What a transformer is shown besides the noise: values that hold, and a frame of bearings.

A Wan transformer knows distances between tokens only, by its rotations; nothing tells it where a
token lies. The embedded one is shown a frame after the clip whose tokens tell their row and column,
and finds its own there by looking in the same place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .guidance import Denoiser

MOST = 8  # rows, and columns, of tokens that are told apart


@dataclass(frozen=True)
class Given:
    """`values` (C, F, H, W) hold wherever `mask` is true; `after` (C, n, H, W) follows the clip."""

    mask: Tensor
    values: Tensor
    after: Tensor

    def shape(self, latent_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what the transformer sees, from that of the request's latents."""
        batch, channels, frames, *sides = latent_shape
        return (batch, channels, frames + self.after.shape[1], *sides)

    def timesteps(self, timesteps: Tensor) -> Tensor:
        """(S,) or (S, 1, rows, 1) to (S, F + n, rows or 1, 1): what is given has timestep 0."""
        if timesteps.dim() == 1:
            timesteps = timesteps[:, None, None, None]
        clip = timesteps.expand(-1, self.values.shape[1], -1, -1)
        return F.pad(clip, (0, 0, 0, 0, 0, self.after.shape[1]))

    def show(self, predict: Denoiser) -> Denoiser:
        """A denoiser of the request's latents, from one of what the transformer sees."""

        def shown(latents: Tensor, step: int) -> Tensor:
            held = torch.where(self.mask, self.values, latents)
            after = self.after.expand(latents.shape[0], -1, -1, -1, -1)
            return predict(torch.cat([held, after], dim=2), step)[:, :, : latents.shape[2]]

        return shown


def bearing_frame(channels: int, rows: int, columns: int) -> Tensor:
    """One latent frame (channels, 1, rows, columns) whose 2x2 patches tell their row and column."""
    height, width = rows // 2, columns // 2
    tokens = torch.zeros(height, width, channels * 4)
    tokens[..., :MOST] = 2.0 * torch.eye(height, MOST)[:, None]
    tokens[..., MOST : 2 * MOST] = 2.0 * torch.eye(width, MOST)
    tokens[..., 2 * MOST : 4 * MOST] = 1.0
    patches = tokens.unflatten(-1, (channels, 2, 2)).permute(2, 0, 3, 1, 4)
    return patches.reshape(channels, 1, rows, columns)
