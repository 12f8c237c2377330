"""Operations that are timed to know a device: small ones, and those of models' sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execution import pack

ITEMS = {4: torch.float32, 2: torch.bfloat16}


class Trial(NamedTuple):
    """One operation to time. `make` gives a function that runs it on `bytes` of its own."""

    kind: str
    item: int
    amount: float
    bytes: int
    make: Callable[[torch.device], Callable[[], Any]]


def trials(device_type: str) -> Iterator[Trial]:
    """What is timed on a kind of device, the amounts of a kind rising."""
    on_cpu = device_type == "cpu"
    sizes = CPU if on_cpu else GPU
    for item in ITEMS:
        yield from (_product(item, *s) for s in sizes.products)
        if on_cpu and pack.can_pack():
            yield from (_product(item, *s, packed=True) for s in sizes.products)
        yield from (_attention(item, *s) for s in sizes.attentions)
        yield from (_attention(item, *s, keys=16) for s in sizes.lookups)
        yield from (_activation(item, count) for count in sizes.counts[1:-1])
    yield from (_convolution(*s) for s in sizes.convolutions)
    yield from (_volume(*s) for s in sizes.volumes)
    yield from (_volume(*s, unfolded=True) for s in sizes.unfolded)
    yield from (_elementwise(count) for count in sizes.counts)
    yield _fourier(280, 1024)


class Sizes(NamedTuple):
    """What is timed: small ones that show what a call takes, and those of models."""

    products: tuple[tuple[int, int, int], ...]  # rows, in, out
    attentions: tuple[tuple[int, int, int, int], ...]  # rows, heads, tokens, head size
    lookups: tuple[tuple[int, int, int, int], ...]
    convolutions: tuple[tuple[int, int, int, int], ...]  # pictures, in, out, side
    volumes: tuple[tuple[int, int, int, int], ...]  # channels, frames, height, width
    unfolded: tuple[tuple[int, int, int, int], ...]
    counts: tuple[int, ...]  # items


CPU = Sizes(
    products=((8, 64, 64), (16, 256, 512), (200, 256, 768), (400, 1024, 256), (512, 1280, 2560)),
    attentions=((1, 1, 16, 64), (1, 4, 200, 64), (2, 10, 400, 128), (1, 10, 800, 128)),
    lookups=((1, 1, 16, 64), (2, 4, 200, 64), (2, 10, 600, 128)),
    convolutions=((1, 16, 16, 8), (1, 128, 128, 8), (4, 64, 64, 16), (4, 96, 96, 32)),
    volumes=((64, 4, 64, 8), (64, 4, 64, 48)),
    unfolded=((16, 1, 8, 8), (64, 1, 16, 16), (64, 1, 48, 48), (32, 4, 72, 72)),
    counts=(256, 16 << 10, 256 << 10, 1 << 20, 8 << 20),
)
GPU = Sizes(
    products=((64, 256, 256), (512, 1536, 1536), (4096, 1536, 8960), (32760, 1536, 8960)),
    attentions=((1, 4, 256, 128), (2, 12, 2048, 128), (1, 12, 16384, 128)),
    lookups=((1, 4, 256, 128), (2, 12, 2048, 128), (2, 12, 32760, 128)),
    convolutions=((1, 64, 64, 32), (4, 192, 192, 128), (4, 96, 96, 480)),
    volumes=((64, 1, 32, 32), (192, 4, 128, 128), (96, 4, 480, 480)),
    unfolded=(),
    counts=(1 << 10, 1 << 20, 64 << 20),
)


def _product(item: int, rows: int, inner: int, width: int, packed: bool = False) -> Trial:
    def make(device: torch.device) -> Callable[[], Any]:
        linear = torch.nn.Linear(inner, width, device="meta", dtype=ITEMS[item])
        linear.weight = torch.nn.Parameter(_values(device, item, width, inner), False)
        linear.bias = torch.nn.Parameter(_values(device, item, width), False)
        layer = pack.PackedLinear(linear) if packed else linear
        x = _values(device, item, rows, inner)
        return lambda: layer(x)

    touched = item * (rows * inner + inner * width + rows * width)
    kind = "packed" if packed else "product"
    return Trial(kind, item, 2.0 * rows * inner * width, touched, make)


def _attention(
    item: int, rows: int, heads: int, tokens: int, head_dim: int, keys: int | None = None
) -> Trial:
    def make(device: torch.device) -> Callable[[], Any]:
        x = _values(device, item, rows, tokens, heads, head_dim)
        x = x.transpose(1, 2)  # as models lay them out
        y = x[:, :, :keys]
        return lambda: F.scaled_dot_product_attention(x, y, y)

    touched = 2 * item * rows * tokens * heads * head_dim
    amount = 4.0 * rows * heads * tokens * (keys or tokens) * head_dim
    return Trial("lookup" if keys else "attention", item, amount, touched, make)


def _activation(item: int, count: int) -> Trial:
    def make(device: torch.device) -> Callable[[], Any]:
        x = _values(device, item, count)
        return lambda: F.gelu(x, approximate="tanh")

    return Trial("activation", item, count, 2 * item * count, make)


def _convolution(pictures: int, inner: int, width: int, side: int) -> Trial:
    def make(device: torch.device) -> Callable[[], Any]:
        conv = torch.nn.Conv2d(inner, width, 3, padding=1, device=device)
        x = _values(device, 4, pictures, inner, side, side)
        x = x.contiguous(memory_format=torch.channels_last)
        return lambda: conv(x)

    touched = 4 * (pictures * (inner + width) * side**2 + 9 * inner * width)
    return Trial("convolution", 4, 18.0 * pictures * inner * width * side**2, touched, make)


def _volume(channels: int, frames: int, height: int, width: int, unfolded: bool = False) -> Trial:
    def make(device: torch.device) -> Callable[[], Any]:
        conv = torch.nn.Conv3d(channels, channels, 3, device=device)
        x = _values(device, 4, 1, channels, frames + 2, height + 2, width + 2)
        return lambda: conv(x)

    places = frames * height * width
    touched = 4 * (2 * channels * places + 27 * channels**2)
    if unfolded:
        windows = 4 * 27 * channels * places
        return Trial("unfolded", 4, windows, touched + windows, make)
    return Trial("volume", 4, 54.0 * channels**2 * places, touched, make)


def _elementwise(count: int) -> Trial:
    """A product into new memory, of two views, as operations in a model come."""

    def make(device: torch.device) -> Callable[[], Any]:
        x, y = _values(device, 4, count), _values(device, 4, count)
        return lambda: x.view(2, -1).transpose(0, 1) * y.view(2, -1).transpose(0, 1)

    return Trial("elementwise", 4, 12.0 * count, 12 * count, make)


def _fourier(columns: int, length: int) -> Trial:
    def make(device: torch.device) -> Callable[[], Any]:
        x = _values(device, 4, columns, length)
        return lambda: torch.fft.rfft(x)

    amount = 2.5 * columns * length * math.log2(length)
    return Trial("fourier", 4, amount, 8 * columns * length, make)


def _values(device: torch.device, item: int, *shape: int) -> Tensor:
    """Numbers about zero, the same some thousand over and over: a device may draw less power, and
    so run faster, on zeros."""
    block = torch.randn(1 << 14, device=device).to(ITEMS[item])
    count = math.prod(shape)
    return block.repeat(-(-count // len(block)))[:count].view(shape)
