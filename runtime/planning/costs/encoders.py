"""Encoding given clips by the autoencoders (`vaes/`) in sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ledger import FP32, Ledger, Size
from .vaes import GROUP, REMEMBERED, WAN_DEFAULTS, LatentShape, WanDecoder, activated, res_block


def kinema_vae_encode(ledger: Ledger, config: Mapping[str, Any], latents: LatentShape) -> None:
    """`AutoencoderKinema.encode_chunks` of a clip that becomes so many latents."""
    _, frames, height, width = latents
    made = ledger.new(config["z_dim"], frames, height, width, item=FP32)
    state = _kinema_encode_chunk(ledger, config, height, width)
    if frames > 1:
        with ledger.repeat(frames - 1):
            state = _kinema_encode_chunk(ledger, config, height, width, state)
    ledger.each(made)


def _kinema_encode_chunk(
    ledger: Ledger,
    config: Mapping[str, Any],
    height: int,
    width: int,
    before: list[Size] | None = None,
) -> list[Size]:
    """One group of frames; what the next sees of it."""
    dim, frame = config["encoder_dim"], config["frame_dim"]
    pixels = ledger.new(GROUP, 3, 8 * height, 8 * width, item=FP32)
    pictures = ledger.each(pixels)
    x = ledger.each(pictures, shape=(GROUP, 48, 2 * height, 2 * width))
    x = ledger.convolve(x, frame, (3, 3))
    x = res_block(ledger, x)
    x = ledger.each(x, shape=(1, GROUP * frame, 2 * height, 2 * width))
    x = ledger.convolve(x, dim, (2, 2), stride=2)
    last = []
    for _ in range(2):
        last.append(activated(ledger, x))
        both = ledger.each(last[-1], shape=(1, 2 * dim, height, width))
        hidden = ledger.convolve(both, dim, (3, 3))
        x = ledger.each(x, ledger.convolve(activated(ledger, hidden), dim, (3, 3)))
    ledger.convolve(activated(ledger, x), config["z_dim"], (1, 1))
    return last


def wan_vae_encode(ledger: Ledger, config: Mapping[str, Any], latents: LatentShape) -> None:
    """`WanVAE.encode_chunks` of a clip that becomes so many latents; untiled, one clip alone."""
    encoder = WanEncoder(ledger, {**WAN_DEFAULTS, "in_channels": 3, **config}, latents)
    moments = [encoder.chunk(first=True)]
    if latents[1] > 1:
        moments.append(encoder.chunk())
    if latents[1] > 2:
        with ledger.repeat(latents[1] - 2):
            moments.append(encoder.chunk())
    n, channels, _, height, width = moments[0].shape
    whole = ledger.each(moments[0], shape=(n, channels, latents[1], height, width))
    ledger.each(ledger.convolve(whole, channels, (1, 1, 1)))


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
