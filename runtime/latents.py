"""The latents a request starts from."""

from __future__ import annotations

import torch
from torch import Tensor


def initial_noise(latent_shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Noise (1, C, F, H, W) in fp32 from a CPU generator, as the reference pipeline draws it."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, *latent_shape), generator=generator, dtype=torch.float32)


def as_batch(latents: Tensor) -> Tensor:
    """Given latents (C, F, H, W) or (1, C, F, H, W) as (1, C, F, H, W) in fp32 on the CPU."""
    latents = torch.as_tensor(latents).detach().to("cpu", torch.float32)
    return latents[None] if latents.dim() == 4 else latents
