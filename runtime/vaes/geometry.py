"""How clips, latents and tiles line up, whatever the autoencoder; no torch."""

from __future__ import annotations

from typing import Any

GROUP = 4  # frames in a latent frame, but for the first, which is one
SPATIAL = 8  # pixels a side in a latent pixel, where a config does not say

LatentShape = tuple[int, int, int, int]  # (C, F, H, W)
Tile = tuple[int, int]  # (height, width) in pixels


def stride_of(config: Any) -> int:
    """Pixels a side in a latent pixel of an autoencoder of this config."""
    return getattr(config, "scale_factor_spatial", None) or SPATIAL
