"""The embedded model's autoencoder (`kinema.py`) in sizes, a latent frame at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ledger import FP32, Ledger, Size
from .geometry import GROUP, LatentShape, Tile
from .sizes import gathered, to_uint8


class KinemaVae:
    """Decoding and encoding of clips by one configuration."""

    def __init__(self, ledger: Ledger, config: Mapping[str, Any]) -> None:
        self.ledger, self.config = ledger, config

    @staticmethod
    def why_whole(config: Mapping[str, Any]) -> str | None:
        """Why it does not work in tiles."""
        return "an AutoencoderKinema works on whole frames"

    def decode(self, latents: LatentShape, tile: Tile | None = None) -> None:
        """`AutoencoderKinema.decode_chunks` of a clip, and its frames."""
        _, frames, height, width = latents
        with gathered(self.ledger, 1 + GROUP * (frames - 1), 8 * height, 8 * width):
            last = self._decode_chunk(height, width)
            if frames > 1:
                with self.ledger.repeat(frames - 1):
                    last = self._decode_chunk(height, width, last)

    def encode(self, latents: LatentShape) -> None:
        """`AutoencoderKinema.encode_chunks` of a clip that becomes so many latents."""
        ledger, (_, frames, height, width) = self.ledger, latents
        made = ledger.new(self.config["z_dim"], frames, height, width, item=FP32)
        last = self._encode_chunk(height, width)
        if frames > 1:
            with ledger.repeat(frames - 1):
                last = self._encode_chunk(height, width, last)
        ledger.each(made)

    def _decode_chunk(self, height: int, width: int, before: Any = None) -> list[Size]:
        """One latent frame to pixels, `before` being held meanwhile; what the next sees of it."""
        ledger, config = self.ledger, self.config
        dim, frame, pixel = (config[f"{name}_dim"] for name in ("decoder", "frame", "pixel"))
        x = ledger.new(1, config["z_dim"], height, width, item=FP32)
        x = ledger.convolve(x, dim, (3, 3))
        x, last = self._through_causal_blocks(x)
        x = ledger.convolve(self._res_block(x), GROUP * frame * 4, (1, 1))
        x = ledger.each(x, shape=(GROUP, frame, 2 * height, 2 * width))
        for _ in range(3):
            x = self._res_block(x)
        x = ledger.convolve(x, pixel * 4, (3, 3))
        x = self._res_block(ledger.each(x, shape=(GROUP, pixel, 4 * height, 4 * width)))
        x = ledger.convolve(self._activated(x), 12, (3, 3))
        to_uint8(ledger, ledger.each(x, shape=(GROUP, 3, 8 * height, 8 * width)))
        return last

    def _encode_chunk(self, height: int, width: int, before: Any = None) -> list[Size]:
        """One group of frames to a latent frame, in the same way."""
        ledger, dim, frame = self.ledger, self.config["encoder_dim"], self.config["frame_dim"]
        pixels = ledger.new(GROUP, 3, 8 * height, 8 * width, item=FP32)
        pictures = ledger.each(pixels)
        x = ledger.each(pictures, shape=(GROUP, 48, 2 * height, 2 * width))
        x = self._res_block(ledger.convolve(x, frame, (3, 3)))
        x = ledger.each(x, shape=(1, GROUP * frame, 2 * height, 2 * width))
        x = ledger.convolve(x, dim, (2, 2), stride=2)
        x, last = self._through_causal_blocks(x)
        ledger.convolve(self._activated(x), self.config["z_dim"], (1, 1))
        return last

    def _through_causal_blocks(self, x: Size) -> tuple[Size, list[Size]]:
        """Two blocks that see the group before, and what they keep for the next."""
        ledger, (n, dim, height, width), last = self.ledger, x.shape, []
        for _ in range(2):
            last.append(self._activated(x))
            both = ledger.each(last[-1], shape=(n, 2 * dim, height, width))
            hidden = ledger.convolve(both, dim, (3, 3))
            x = ledger.each(x, ledger.convolve(self._activated(hidden), dim, (3, 3)))
        return x, last

    def _res_block(self, x: Size) -> Size:
        hidden = self.ledger.convolve(self._activated(x), x.shape[1], (3, 3))
        return self.ledger.each(
            x, self.ledger.convolve(self._activated(hidden), x.shape[1], (3, 3))
        )

    def _activated(self, x: Size) -> Size:
        return self.ledger.each(self.ledger.norm_modulate(x))
