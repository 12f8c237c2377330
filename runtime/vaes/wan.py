"""Wan's autoencoders, 2.1 (8x) and 2.2 (16x): diffusers' class, driven a latent frame at a time.

The class remembers the last two frames before every causal convolution, so a clip can be coded in
pieces of one latent frame: a frame of pixels first, then four at a time. Here the pieces leave as
they are made.

Shape legend: B batch, C channels, F frames, H W of the picture, h w of the latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import weights
from ..errors import KinemaError, UsageError
from ..shards import read_entries
from .wan_layers import Decoding, Encoding, TiledDecoding, TiledEncoding, patchify, unpatchify
from .wan_original import ORIGINAL

GROUP = 4  # frames in a latent frame

Tile = tuple[int, int]


class WanVAE(nn.Module):
    """diffusers' `AutoencoderKLWan`, streamed. Latents are raw: not normalised.

    A `tile` (height, width) in pixels asks for less memory: the layers at the two finest
    resolutions then work on windows, each wider than its tile by as far as their convolutions
    reach; deeper ones, the attention over the frame among them, see the whole. So the result is the
    untiled one within rounding, and no seams are blended. (The reference's own tiles cut through
    every layer and blend: another picture.)
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.config: Any = vae.config

    def decode_chunks(self, latents: Tensor, tile: Tile | None = None) -> Iterator[Tensor]:
        """Pixels (B, 3, 1 or 4, H, W) from -1 to 1 of each latent frame of (B, C, F, h, w).

        Side by side they are, bit for bit, the reference's `decode` of the whole.
        """
        decoder = self.vae.decoder
        decode = Decoding(decoder) if tile is None else TiledDecoding(decoder, self._folded(tile))
        frames = self.vae.post_quant_conv(latents)
        for i in range(latents.shape[2]):
            pixels = decode(frames[:, :, i : i + 1], first_chunk=i == 0)
            yield unpatchify(pixels, self.patch).clamp_(-1.0, 1.0)

    def encode(self, pixels: Tensor, tile: Tile | None = None) -> Tensor:
        """Latents (B, C, 1+k, h, w), the mode of the distribution, of pixels (B, 3, 1+4k, H, W).

        Raises `UsageError` where frames or sizes do not fit.
        """
        frames, height, width = pixels.shape[2:]
        stride = self.config.scale_factor_spatial
        if frames % GROUP != 1 or height % stride or width % stride:
            raise UsageError(
                f"{frames} frames of {width}x{height} do not fit:"
                f" frames are 1 + {GROUP}k, sides multiples of {stride}"
            )
        return self.encode_chunks(pixels.split([1, *[GROUP] * (frames // GROUP)], dim=2), tile)

    def encode_chunks(self, chunks: Iterable[Tensor], tile: Tile | None = None) -> Tensor:
        """The same, of pixels that come in chunks along time: one frame, then four at a time."""
        encoder = self.vae.encoder
        encode = Encoding(encoder) if tile is None else TiledEncoding(encoder, self._folded(tile))
        moments = [encode(patchify(chunk, self.patch)) for chunk in chunks]
        return self.vae.quant_conv(torch.cat(moments, dim=2)).chunk(2, dim=1)[0]

    @property
    def patch(self) -> int:
        """Pixels a side that are folded into channels before the first layer."""
        return self.config.patch_size or 1

    def _folded(self, tile: Tile) -> Tile:
        """A tile in pixels as one of folded pixels; raises `UsageError` where it does not fit."""
        unit = self.config.scale_factor_spatial
        if min(tile) < unit or any(side % unit for side in tile):
            nearest = "x".join(str(max(unit, round(side / unit) * unit)) for side in tile)
            raise UsageError(
                f"tile is {tile[0]}x{tile[1]}; its sides must be multiples of {unit}:"
                f" nearest {nearest}"
            )
        if self.config.attn_scales:
            raise UsageError(
                f"tile is {tile[0]}x{tile[1]}, but this autoencoder attends to the whole frame at"
                f" scales {list(self.config.attn_scales)}; tile=None works"
            )
        return tile[0] // self.patch, tile[1] // self.patch


def open_wan_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> WanVAE:
    """Open a published vae/ folder: diffusers' class, filled with weights as our own modules are.

    Weights may have the names that the model's authors gave them. Raises `KinemaError` where
    diffusers is missing or refuses the config, or weights do not fit.
    """
    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        raise KinemaError(
            "Wan's autoencoder is opened by diffusers: pip install 'kinema[wan]'"
        ) from None
    try:
        config = json.loads((folder / "config.json").read_text())
        entries = ORIGINAL.published(read_entries(folder))
        vae = weights.load(
            lambda: AutoencoderKLWan.from_config(config), entries, None, device, dtype
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise KinemaError(f"cannot open {'/'.join(folder.parts[-2:])}: {reason}") from error
    return WanVAE(vae)
