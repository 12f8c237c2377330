"""Wan's autoencoders (`wan.py`), 2.1 and 2.2, in sizes: a latent frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..ledger import FP32, Ledger, Size
from .geometry import GROUP, LatentShape, Tile
from .sizes import gathered, to_uint8

REMEMBERED = 2  # frames that a causal convolution sees before its own
DEFAULTS = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "temperal_downsample": (False, True, True),
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
}


class WanVae:
    """Decoding and encoding of clips by one configuration."""

    def __init__(self, ledger: Ledger, config: Mapping[str, Any]) -> None:
        self.ledger, self.config = ledger, {**DEFAULTS, **config}

    @staticmethod
    def why_whole(config: Mapping[str, Any]) -> str | None:
        """Why it does not work in tiles, if it does not."""
        if config.get("attn_scales"):
            return "this autoencoder attends to the whole frame at several scales"
        return None

    def decode(self, latents: LatentShape, tile: Tile | None = None) -> None:
        """`WanVAE.decode_chunks` of a clip, and its frames."""
        decoder = WanDecoder(self.ledger, self.config, latents, tile)
        whole = self.ledger.new(*latents, item=FP32)  # noqa: F841  # after the first convolution
        height, width = (side * decoder.scale for side in latents[2:])
        with gathered(self.ledger, 1 + GROUP * (latents[1] - 1), height, width):
            decoder.chunk(first=True)
            if latents[1] > 1:
                decoder.chunk()
            if latents[1] > 2:
                with self.ledger.repeat(latents[1] - 2):
                    decoder.chunk()

    def encode(self, latents: LatentShape) -> None:
        """`WanVAE.encode_chunks` of a clip that becomes so many latents; untiled, alone."""
        ledger = self.ledger
        encoder = WanEncoder(ledger, self.config, latents)
        moments = [encoder.chunk(first=True)]
        if latents[1] > 1:
            moments.append(encoder.chunk())
        if latents[1] > 2:
            with ledger.repeat(latents[1] - 2):
                moments.append(encoder.chunk())
        n, channels, _, height, width = moments[0].shape
        whole = ledger.each(moments[0], shape=(n, channels, latents[1], height, width))
        ledger.each(ledger.convolve(whole, channels, (1, 1, 1)))


class WanDecoder:
    """diffusers' `WanDecoder3d` on one clip: what its causal convolutions remember, and its parts.

    In tiles (height, width) of pixels, blocks at the finest two resolutions see windows.
    """

    def __init__(
        self, ledger: Ledger, config: Mapping[str, Any], latents: LatentShape, tile: Tile | None
    ) -> None:
        self.ledger, self.config, self.latents = ledger, config, latents
        self.patch = config["patch_size"] or 1
        self.tile = None if tile is None else [side // self.patch // 2 for side in tile]
        base, mult = config["decoder_base_dim"] or config["base_dim"], config["dim_mult"]
        self.dims = [base * factor for factor in (mult[-1], *reversed(mult))]
        self.scale = 2 ** (len(mult) - 1) * self.patch
        self.doubles = tuple(reversed(config["temperal_downsample"]))
        self.remembered: dict[Any, Size | None] = {}
        self.first = False

    def chunk(self, first: bool = False) -> None:
        """One latent frame to pixels."""
        self.first, self.layers = first, iter(range(1000))
        self.window = 0
        channels, _, height, width = self.latents
        x = self._causal(self.ledger.new(1, channels, 1, height, width, item=FP32), self.dims[0])
        x = self._residual(x, self.dims[0])
        x = self._residual(self._attention(x), self.dims[0])
        fine = len(self.dims) - 3  # the block that the last change of resolution ends
        for number in range(fine if self.tile else len(self.dims) - 1):
            x = self._up_block(x, number)
        x = self._in_windows(x, fine) if self.tile else self._head(x)
        if self.patch > 1:
            n, c, f, h, w = x.shape
            sides = (h * self.patch, w * self.patch)
            x = self.ledger.each(x, shape=(n, c // self.patch**2, f, *sides))
        self.ledger.spend("elementwise", FP32, 2 * x.bytes)  # clamped in place
        to_uint8(self.ledger, x)

    def _head(self, x: Size) -> Size:
        return self._causal(self._norm_silu(x), self.config["out_channels"])

    def _in_windows(self, x: Size, fine: int) -> Size:
        whole, after = None, next(self.layers)
        for height, width in self._windows(x):
            self.window, self.layers = self.window + 1, iter(range(after, 1000))
            part = self.ledger.each(x, shape=(*x.shape[:3], height, width))
            for number in range(fine, len(self.dims) - 1):
                part = self._up_block(part, number)
            part = self._head(part)
            if whole is None:
                sides = (2 * side for side in x.shape[-2:])
                whole = self.ledger.new(*part.shape[:3], *sides, item=FP32)
            self.ledger.spend("elementwise", FP32, 2 * part.bytes)
        assert whole is not None
        return whole

    def _windows(self, x: Size) -> Iterator[tuple[int, int]]:
        """Sides of every window, as wide as what its convolutions see."""
        blocks = self.config["num_res_blocks"] + 1
        reach = -(-(2 + 2 * blocks) // 2) + 2 * blocks
        spans = [
            [
                min(start + core + reach, side) - max(start - reach, 0)
                for start in range(0, side, core)
            ]
            for side, core in zip(x.shape[-2:], self.tile or (), strict=True)
        ]
        return ((height, width) for height in spans[0] for width in spans[1])

    def _up_block(self, x: Size, number: int) -> Size:
        ledger, width, residual = self.ledger, self.dims[number + 1], self.config["is_residual"]
        copy = ledger.each(x) if residual else None
        for _ in range(self.config["num_res_blocks"] + 1):
            x = self._residual(x, width)
        if number == len(self.dims) - 2:
            return x
        x = self._upsample(x, width if residual else width // 2, self.doubles[number])
        if copy is None:
            return x
        shortcut = ledger.each(ledger.each(copy, shape=x.shape))
        return ledger.each(x, shortcut)

    def _upsample(self, x: Size, channels: int, double: bool) -> Size:
        ledger = self.ledger
        if double:
            layer = (self.window, next(self.layers))
            if not self.first:
                n, c, f, h, w = x.shape
                joined = ledger.each(x, shape=(n, c, f + REMEMBERED, h, w))
                joined = ledger.each(joined)
                x = ledger.convolve(joined, 2 * c, (3, 1, 1))
                del joined
                self.remembered[layer] = ledger.new(n, c, REMEMBERED, h, w, item=FP32)
                x = ledger.each(x, shape=(n, c, 2 * f, h, w))
        n, c, f, h, w = x.shape
        x = ledger.each(x, shape=(n * f, c, h, w))
        x = ledger.each(x, shape=(n * f, c, 2 * h, 2 * w))
        x = ledger.convolve(x, channels, (3, 3))
        return ledger.each(x, shape=(n, channels, f, 2 * h, 2 * w))

    def _residual(self, x: Size, channels: int) -> Size:
        shortcut = x
        if x.shape[1] != channels:
            shortcut = self.ledger.convolve(self.ledger.each(x), channels, (1, 1, 1))
        hidden = self._causal(self._norm_silu(x), channels)
        hidden = self._causal(self._norm_silu(hidden), channels)
        return self.ledger.each(hidden, shortcut)

    def _norm_silu(self, x: Size) -> Size:
        self.ledger.spend("elementwise", FP32, x.bytes)  # its length
        for _ in range(4):
            x = self.ledger.each(x)
        return self.ledger.each(x)

    def _causal(self, x: Size, channels: int) -> Size:
        """A convolution in space and time after the frames it remembers."""
        ledger, layer = self.ledger, (self.window, next(self.layers))
        n, c, f, h, w = x.shape
        kept = min(REMEMBERED, f + (0 if self.first else 1))
        cache = ledger.each(x, shape=(n, c, kept, h, w))
        joined = x if self.first else ledger.each(x, shape=(n, c, f + self._count(layer), h, w))
        joined = ledger.each(joined, shape=(n, c, f + REMEMBERED, h + 2, w + 2))
        out = ledger.convolve(joined, channels, (3, 3, 3), pad=False)
        self.remembered[layer] = cache
        return out

    def _count(self, layer: Any) -> int:
        before = self.remembered.get(layer)
        return 0 if before is None else before.shape[2]

    def _attention(self, x: Size) -> Size:
        ledger, (n, c, f, h, w) = self.ledger, x.shape
        flat = ledger.each(x, shape=(n * f, c, h, w))
        for _ in range(4):
            flat = ledger.each(flat)
        both = ledger.each(ledger.convolve(flat, 3 * c, (1, 1)))
        query = ledger.new(n * f, h * w, c, item=FP32)
        out = ledger.attention(query, h * w, 1, c)
        del query
        out = ledger.convolve(ledger.each(out, shape=flat.shape), c, (1, 1))
        assert both
        return ledger.each(x, out)


class WanEncoder(WanDecoder):
    """diffusers' `WanEncoder3d` on one clip."""

    def __init__(self, ledger: Ledger, config: Mapping[str, Any], latents: LatentShape) -> None:
        super().__init__(ledger, config, latents, None)
        base, mult = config["base_dim"], config["dim_mult"]
        self.dims = [base * factor for factor in (1, *mult)]
        self.halves = tuple(config["temperal_downsample"])

    def chunk(self, first: bool = False) -> Size:
        """One group of frames to moments (1, 2C, 1, h, w)."""
        self.first, self.layers, self.window = first, iter(range(1000)), 0
        height, width = (side * self.scale // self.patch for side in self.latents[2:])
        channels, frames = self.config["in_channels"], 1 if first else GROUP
        x = self.ledger.new(1, channels, frames, height, width, item=FP32)
        if self.patch > 1:
            x = self.ledger.each(x)
        x = self._causal(x, self.dims[0])
        for number in range(len(self.dims) - 1):
            x = self._down_block(x, number)
        x = self._residual(x, self.dims[-1])
        x = self._residual(self._attention(x), self.dims[-1])
        return self._causal(self._norm_silu(x), 2 * self.config["z_dim"])

    def _down_block(self, x: Size, number: int) -> Size:
        ledger, width = self.ledger, self.dims[number + 1]
        copy = ledger.each(x) if self.config["is_residual"] else None
        for _ in range(self.config["num_res_blocks"]):
            x = self._residual(x, width)
        if number < len(self.dims) - 2:
            x = self._downsample(x, self.halves[number])
        if copy is None:
            return x
        return ledger.each(x, ledger.each(copy, shape=x.shape))

    def _downsample(self, x: Size, halve: bool) -> Size:
        ledger, (n, c, f, h, w) = self.ledger, x.shape
        x = ledger.each(x, shape=(n * f, c, h, w))
        x = ledger.each(x, shape=(n * f, c, h + 1, w + 1))
        x = ledger.convolve(x, c, (3, 3), stride=2, pad=False)
        x = ledger.each(x, shape=(n, c, f, *x.shape[2:]))
        if not halve:
            return x
        layer = (self.window, next(self.layers))
        h, w = x.shape[3:]
        cache = ledger.each(x, shape=(n, c, 1, h, w))
        if not self.first:
            joined = ledger.each(x, shape=(n, c, f + 1, h, w))
            x = self._halved(joined, f // 2)
        self.remembered[layer] = cache
        return x

    def _halved(self, joined: Size, frames: int) -> Size:
        """Every other frame of a convolution over three, in time alone."""
        n, c, _, h, w = joined.shape
        ledger = self.ledger
        ledger.spend("call", 0, 1)
        out = ledger.new(n, c, frames, h, w, item=joined.item)
        flops = 2 * out.count * c * (REMEMBERED + 1)
        ledger._convolve_volume(joined, flops, c * (REMEMBERED + 1) * frames * h * w)
        return out
