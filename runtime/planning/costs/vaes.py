"""The autoencoders (`vaes/`) in sizes: decoding, a latent frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .ledger import FP32, Ledger, Size

GROUP = 4  # frames in a latent frame
REMEMBERED = 2  # frames that a causal convolution sees before its own
LatentShape = tuple[int, int, int, int]
Tile = tuple[int, int]


def kinema_vae(
    ledger: Ledger, config: Mapping[str, Any], latents: LatentShape, tile: Tile | None = None
) -> None:
    """`AutoencoderKinema.decode_chunks` of a clip, and its frames."""
    _, frames, height, width = latents
    with _gathered(ledger, 1 + GROUP * (frames - 1), 8 * height, 8 * width):
        state = _kinema_chunk(ledger, config, height, width)
        if frames > 1:
            with ledger.repeat(frames - 1):
                state = _kinema_chunk(ledger, config, height, width, state)


def _kinema_chunk(
    ledger: Ledger,
    config: Mapping[str, Any],
    height: int,
    width: int,
    before: list[Size] | None = None,
) -> list[Size]:
    dim, frame, pixel = (config[f"{name}_dim"] for name in ("decoder", "frame", "pixel"))
    x = ledger.new(1, config["z_dim"], height, width, item=FP32)
    x = ledger.convolve(x, dim, (3, 3))
    last = []
    for _ in range(2):
        last.append(activated(ledger, x))
        both = ledger.each(last[-1], shape=(1, 2 * dim, height, width))
        hidden = ledger.convolve(both, dim, (3, 3))
        x = ledger.each(x, ledger.convolve(activated(ledger, hidden), dim, (3, 3)))
    x = ledger.convolve(res_block(ledger, x), GROUP * frame * 4, (1, 1))
    x = ledger.each(x, shape=(GROUP, frame, 2 * height, 2 * width))
    for _ in range(3):
        x = res_block(ledger, x)
    x = ledger.convolve(x, pixel * 4, (3, 3))
    x = res_block(ledger, ledger.each(x, shape=(GROUP, pixel, 4 * height, 4 * width)))
    x = ledger.convolve(activated(ledger, x), 12, (3, 3))
    x = ledger.each(x, shape=(GROUP, 3, 8 * height, 8 * width))
    _to_uint8(ledger, x)
    return last


def activated(ledger: Ledger, x: Size) -> Size:
    return ledger.each(ledger.norm_modulate(x))


def res_block(ledger: Ledger, x: Size) -> Size:
    hidden = ledger.convolve(activated(ledger, x), x.shape[1], (3, 3))
    return ledger.each(x, ledger.convolve(activated(ledger, hidden), x.shape[1], (3, 3)))


# ---- Wan's, 2.1 and 2.2 --------------------------------------------------------------------------

WAN_DEFAULTS = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "temperal_downsample": (False, True, True),
    "is_residual": False,
    "out_channels": 3,
    "patch_size": None,
}


def wan_vae(
    ledger: Ledger, config: Mapping[str, Any], latents: LatentShape, tile: Tile | None = None
) -> None:
    """`WanVAE.decode_chunks` of a clip, and its frames."""
    decoder = WanDecoder(ledger, {**WAN_DEFAULTS, **config}, latents, tile)
    whole = ledger.new(*latents, item=FP32)  # noqa: F841  # after the first convolution
    height, width = (side * decoder.scale for side in latents[2:])
    with _gathered(ledger, 1 + GROUP * (latents[1] - 1), height, width):
        decoder.chunk(first=True)
        if latents[1] > 1:
            decoder.chunk()
        if latents[1] > 2:
            with ledger.repeat(latents[1] - 2):
                decoder.chunk()


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
        _to_uint8(self.ledger, x)

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


# ---- pixels --------------------------------------------------------------------------------------


def _to_uint8(ledger: Ledger, pixels: Size) -> None:
    """`decode.to_uint8`."""
    x = ledger.each(ledger.each(ledger.each(pixels)))
    x = ledger.each(ledger.each(x))
    ledger.each(x, item=1)


@contextmanager
def _gathered(ledger: Ledger, frames: int, height: int, width: int) -> Iterator[None]:
    """All frames beside what decodes them, then a second time as one array; on the host."""
    if ledger.on_host:
        chunks = ledger.new(frames, height, width, 3, item=1)
    yield
    if ledger.on_host:
        ledger.each(chunks)
