"""What a forward costs, from the same forward written in sizes: its work, and memory while it runs.

A `Size` stands for a tensor. It is held as long as a variable names it, as a tensor is, so a cost
function that keeps and drops what the model keeps and drops finds the same peak. Work is counted by
kind of operation and size; what it takes in seconds is for the ceilings of a device to say.
Nothing is computed, and torch is not imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

FP32 = 4  # bytes of an item
# On a CPU PyTorch leaves a convolution of a clip to oneDNN where rows x channels x frames x height
# of its input are more than this; else it writes every window out and multiplies.
UNFOLDED_UP_TO = 20480
FEW_KEYS = 64  # attention to so many or fewer is timed apart


class Work(NamedTuple):
    """One operation of a kind, on items of so many bytes.

    Its amount is in FLOPs for product, packed (a product of a packed layer), attention, lookup
    (attention to few keys), convolution, volume (in three dimensions) and fourier; in bytes read
    and written for elementwise, and written for unfolded (a convolution in three dimensions that
    writes its windows out); in items for activation; nothing for call, which is what a model does
    around an operation.
    """

    kind: str
    item: int
    amount: int
    flops: int = 0


COUNT_FLOPS = frozenset(
    {"product", "packed", "attention", "lookup", "convolution", "volume", "fourier"}
)


@dataclass(frozen=True)
class Shapes:
    """What a transformer works on in a request.

    latents: (C, F, H, W), frames that are only shown included. rows: of text, which are the
    branches of guidance that run in one batch. timestep_axes: whether timesteps differ along
    frames, rows and columns.
    """

    latents: tuple[int, int, int, int]
    steps: int
    rows: int
    text_tokens: int
    timestep_axes: tuple[bool, bool, bool] = (False, False, False)


class Size:
    """A tensor that is only counted."""

    __slots__ = ("item", "ledger", "shape")

    def __init__(self, ledger: Ledger, shape: tuple[int, ...], item: int) -> None:
        self.ledger, self.shape, self.item = ledger, shape, item
        ledger.live += self.bytes
        ledger.peak = max(ledger.peak, ledger.live)

    def __del__(self) -> None:
        self.ledger.live -= self.bytes

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.count * self.item


class Ledger:
    """Counts work and memory of a device.

    on_host: it computes in the host's memory. fused: norms, rotations and gates are single kernels.
    packed: linear layers of blocks are packed for a CPU (`pack.py`).
    """

    def __init__(self, on_host: bool = True, fused: bool = False, packed: bool = False) -> None:
        self.on_host, self.fused, self.packed = on_host, fused, packed
        self.live = self.peak = 0
        self.work: Counter[Work] = Counter()
        self._times = 1

    def new(self, *shape: int, item: int) -> Size:
        """A tensor that nothing was computed for."""
        return Size(self, shape, item)

    def spend(self, kind: str, item: int, amount: float, flops: int = 0) -> None:
        """Count one operation."""
        flops = int(amount) if kind in COUNT_FLOPS else flops
        self.work[Work(kind, item, int(amount), flops)] += self._times

    @contextmanager
    def repeat(self, times: int) -> Iterator[None]:
        """Work inside counts so many times; memory is that of one."""
        before, self._times = self._times, self._times * times
        yield
        self._times = before

    def take(self) -> tuple[Counter[Work], int]:
        """Work so far and peak bytes; both begin anew, from what is held now."""
        taken = self.work, self.peak
        self.work, self.peak = Counter(), self.live
        return taken

    # ---- operations ------------------------------------------------------------------------------

    def each(self, *reads: Size, shape: tuple[int, ...] | None = None, item: int = 0) -> Size:
        """Elementwise into a new tensor, by default like the first that is read.

        No more of a tensor is read than the new one has.
        """
        out = Size(self, shape or reads[0].shape, item or reads[0].item)
        read = sum(min(x.count, out.count) * x.item for x in reads)
        self.spend("elementwise", out.item, read + out.bytes)
        return out

    def cast(self, x: Size, item: int) -> Size:
        """Another dtype; the same tensor where that is its own."""
        return x if x.item == item else self.each(x, item=item)

    def activate(self, x: Size) -> Size:
        """GELU into a new tensor."""
        self.spend("activation", x.item, x.count)
        return Size(self, x.shape, x.item)

    def linear(self, x: Size, width: int, packed: bool = False) -> Size:
        """(..., in) to (..., width)."""
        self._call()
        *rows, inner = x.shape
        out = Size(self, (*rows, width), x.item)
        kind = "packed" if packed and self.packed else "product"
        self.spend(kind, x.item, 2 * prod(rows) * inner * width)
        return out

    def attention(self, query: Size, keys: int, heads: int, head_dim: int) -> Size:
        """Of queries (rows, L, d) to so many keys for each row."""
        self._call()
        rows, length, _ = query.shape
        out = Size(self, query.shape, query.item)
        lse = self.new(rows, heads, length, item=FP32)  # noqa: F841  # lives as long as the call
        kind = "lookup" if keys <= FEW_KEYS else "attention"
        self.spend(kind, query.item, 4 * rows * heads * length * keys * head_dim)
        return out

    def convolve(
        self, x: Size, channels: int, kernel: tuple[int, ...], stride: int = 1, pad: bool = True
    ) -> Size:
        """(n, c, [f,] h, w) to `channels`, in two dimensions or in three; padded to keep its sides,
        in three only along the picture: what comes before in time is there already."""
        self._call()
        before, inner, *sides = x.shape
        if len(kernel) == 3:
            sides[0] -= kernel[0] - 1
        if not pad:
            sides[-2:] = (side - kernel[-1] + 1 for side in sides[-2:])
        sides[-2:] = (-(-side // stride) for side in sides[-2:])
        out = Size(self, (before, channels, *sides), x.item)
        if len(kernel) == 2:
            self.spend("convolution", x.item, 2 * out.count * inner * prod(kernel))
            return out
        self._convolve_volume(
            x, 2 * out.count * inner * prod(kernel), inner * prod((*kernel, *sides))
        )
        return out

    def _convolve_volume(self, x: Size, flops: int, unfolded: int) -> None:
        if not self.on_host:
            self.spend("volume", x.item, flops)
        elif prod(x.shape[:4]) > UNFOLDED_UP_TO:
            self.spend("volume", x.item, flops)
            self.new(x.count, item=x.item)  # laid out anew
        else:
            windows = self.new(unfolded, item=x.item)
            self.spend("unfolded", x.item, windows.bytes, flops)

    # ---- what a transformer binds, see kernels/operations.py -------------------------------------

    def gate_residual(self, x: Size, y: Size, gated: bool = True) -> Size:
        """x + y * gate."""
        self._call()
        if self.fused or not gated:
            return self.each(x, y)
        return self.cast(self.each(self.cast(x, FP32), self.cast(y, FP32)), x.item)

    def norm_modulate(
        self, x: Size, *, norm: str = "layer", affine: bool = False, modulated: bool = False
    ) -> Size:
        """The norm of x, scaled and shifted."""
        self._call()
        if self.fused:
            return self.each(x)
        hidden = self._norm(x, norm, affine)
        if modulated:
            self._in_place(hidden)
        return self.cast(hidden, x.item)

    def add_and_norm(
        self, x: Size, residual: Size, *, gated: bool = False, modulated: bool = False
    ) -> tuple[Size, Size]:
        """A residual added to x, and the norm of that."""
        if self.fused:
            out = Size(self, x.shape, x.item)
            return out, self.each(x, residual, out)
        x = self.gate_residual(x, residual, gated)
        return x, self.norm_modulate(x, modulated=modulated)

    def qk_norm_rope(self, query_key: Size) -> tuple[Size, Size]:
        """Queries and keys out of (..., 3d), normed and turned."""
        self._call()
        *rows, _ = query_key.shape
        width = query_key.shape[-1] // 3
        if self.fused:
            key = self.new(*rows, width, item=query_key.item)
            return self.each(key, key, shape=(*rows, width)), key
        return self._turned(query_key, width), self._turned(query_key, width)

    def _call(self) -> None:
        self.spend("call", 0, 1)

    def _turned(self, source: Size, width: int) -> Size:
        *rows, _ = source.shape
        part = (*rows, width)
        hidden = self._normed_rms(source, part, affine=True)
        return self.cast(self.each(hidden), source.item)

    def _in_place(self, x: Size) -> None:
        self.spend("elementwise", x.item, 2 * x.bytes)

    def _norm(self, x: Size, norm: str, affine: bool) -> Size:
        if norm == "layer":
            x = self.cast(x, FP32)
            self.spend("elementwise", FP32, 2 * x.bytes)  # its moments
            return self.each(x)
        return self._normed_rms(x, x.shape, affine)

    def _normed_rms(self, x: Size, shape: tuple[int, ...], affine: bool) -> Size:
        if x.item != FP32:
            x = self.each(x, shape=shape, item=FP32)
        x = self.each(x, shape=shape)
        self.spend("elementwise", FP32, x.bytes)  # its length
        if affine:
            self._in_place(x)
        return x
