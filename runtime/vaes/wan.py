"""Wan's autoencoder, through diffusers' own class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import KinemaError


class WanVAE(nn.Module):
    """diffusers' `AutoencoderKLWan` with the interface decoding asks for."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.config: Any = vae.config

    def decode_chunks(self, latents: Tensor) -> Iterator[Tensor]:
        """Pixels (1, 3, 1+4k, H, W) of raw latents (1, 16, 1+k, H/8, W/8), in one chunk."""
        yield self.vae.decode(latents, return_dict=False)[0]


def open_wan_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """Open a published vae/ folder; raises `KinemaError` where diffusers is missing or refuses."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        raise KinemaError("Wan's autoencoder needs diffusers: pip install diffusers") from None
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True)
    return WanVAE(vae.to(device).eval())
