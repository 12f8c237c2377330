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

from ..checkpoints import weights
from ..checkpoints.shards import read_entries
from ..errors import KinemaError, UsageError
from ..files import reason_of
from .geometry import Tile
from .streaming import Streaming
from .wan_layers import TiledDecoding, TiledEncoding, patchify, run_first, run_next, unpatchify
from .wan_original import ORIGINAL


class WanVAE(Streaming, nn.Module):
    """diffusers' `AutoencoderKLWan`, streamed. Latents are raw: not normalised.

    Side by side, pixels and latents are, bit for bit, the reference's of the whole clip. Memory is
    the frames that each causal convolution sees before its own, zeros where there were none.

    A `tile` (height, width) in pixels asks for less memory: the layers at the two finest
    resolutions then work on windows, each wider than its tile by as far as their convolutions
    reach; deeper ones, the attention over the frame among them, see the whole. So the result is the
    untiled one within rounding, and no seams are blended. (The reference's own tiles cut through
    every layer and blend: another picture.)
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.config = vae.config

    def decode_first(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        decoder = self.vae.decoder
        pixels, memory = run_first(decoder, self.vae.post_quant_conv(latents), first_chunk=True)
        return self._to_pixels(pixels), memory

    def decode_next(self, latents: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        pixels, memory = run_next(self.vae.decoder, self.vae.post_quant_conv(latents), memory)
        return self._to_pixels(pixels), memory

    def encode_first(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        moments, memory = run_first(self.vae.encoder, patchify(pixels, self.patch))
        return self._to_latents(moments), memory

    def encode_next(self, pixels: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        moments, memory = run_next(self.vae.encoder, patchify(pixels, self.patch), memory)
        return self._to_latents(moments), memory

    def decode_chunks(self, latents: Tensor, tile: Tile | None = None) -> Iterator[Tensor]:
        return super().decode_chunks(latents) if tile is None else self._decode_tiled(latents, tile)

    def _decode_tiled(self, latents: Tensor, tile: Tile) -> Iterator[Tensor]:
        decode = TiledDecoding(self.vae.decoder, self._folded(tile))
        frames = self.vae.post_quant_conv(latents)
        for i in range(latents.shape[2]):
            yield self._to_pixels(decode(frames[:, :, i : i + 1], first_chunk=i == 0))

    def encode_chunks(self, chunks: Iterable[Tensor], tile: Tile | None = None) -> Tensor:
        if tile is None:
            return super().encode_chunks(chunks)
        encode = TiledEncoding(self.vae.encoder, self._folded(tile))
        moments = [encode(patchify(chunk, self.patch)) for chunk in chunks]
        return self._to_latents(torch.cat(moments, dim=2))

    def _to_pixels(self, folded: Tensor) -> Tensor:
        return unpatchify(folded, self.patch).clamp_(-1.0, 1.0)

    def _to_latents(self, moments: Tensor) -> Tensor:
        """The mode of the distribution."""
        return self.vae.quant_conv(moments).chunk(2, dim=1)[0]

    @property
    def patch(self) -> int:
        """Pixels a side that are folded into channels before the first layer."""
        return self.config.patch_size or 1

    def _folded(self, tile: Tile) -> Tile:
        """A tile in pixels as one of folded pixels; raises `UsageError` where it does not fit."""
        unit = self.config.scale_factor_spatial
        if min(tile) < unit or any(side % unit for side in tile):
            sides = (str(max(unit, round(side / unit) * unit)) for side in reversed(tile))
            nearest = "x".join(sides)
            raise UsageError(
                f"tile is {tile[1]}x{tile[0]}; its sides must be multiples of {unit}:"
                f" nearest {nearest}"
            )
        if self.config.attn_scales:
            raise UsageError(
                f"tile is {tile[1]}x{tile[0]}, but this autoencoder attends to the whole frame at"
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
            lambda: AutoencoderKLWan.from_config(config),  # pyright: ignore[reportArgumentType]
            entries,
            None,
            device,
            dtype,
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        name = "/".join(folder.parts[-2:])
        raise KinemaError(f"cannot open {name}: {reason_of(error)}") from error
    return WanVAE(vae)
