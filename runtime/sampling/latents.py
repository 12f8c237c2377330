"""The latents a request starts from."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_noise(latent_shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """The noise of a seed, (1, C, F, H, W) in fp32, as the reference pipeline draws it."""
    return draw_noise(latent_shape, torch.Generator("cpu").manual_seed(seed))


def draw_noise(latent_shape: tuple[int, int, int, int], generator: torch.Generator) -> Tensor:
    """Noise (1, C, F, H, W) in fp32 from where a CPU generator stands."""
    return torch.randn((1, *latent_shape), generator=generator, dtype=torch.float32)


def as_batch(latents: Tensor) -> Tensor:
    """Given latents (C, F, H, W) or (1, C, F, H, W) as (1, C, F, H, W) in fp32 on the CPU."""
    latents = torch.as_tensor(latents).detach().to("cpu", torch.float32)
    return latents[None] if latents.dim() == 4 else latents
