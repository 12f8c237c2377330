"""Sound codecs in sizes."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any

from ..ledger import FP32, Ledger, Size

COMPLEX = 8
ITERATIONS = 40  # of Griffin-Lim


def kinema_sound(ledger: Ledger, config: Mapping[str, Any], frames: int, samples: int) -> None:
    """`KinemaSound.decode`: Griffin-Lim on the columns of a clip and some around them."""
    n_fft = config["n_fft"]
    hop = config["sample_rate"] // config["fps"] // config["columns"]
    columns = round(samples / hop) + 2 * config["columns"] + 1
    bins = n_fft // 2 + 1

    def transform(x: Size, *shape: int, item: int) -> Size:
        out = ledger.new(*shape, item=item)
        ledger.spend("fourier", FP32, columns * 2.5 * n_fft * log2(n_fft))
        return out

    def to_wave(spectrum: Size) -> Size:
        windows = transform(ledger.each(spectrum), columns, n_fft, item=FP32)
        windows = ledger.each(windows)
        for _ in range(2):  # they are summed where they overlap, and so are the squares they had
            ledger.spend("activation", FP32, windows.count)
        ledger.each(windows)
        return ledger.each(windows, shape=(columns * hop + n_fft,))

    def to_spectrum(wave: Size) -> Size:
        windows = ledger.each(wave, shape=(columns, n_fft))
        return transform(windows, columns, bins, item=COMPLEX)

    ledger.spend("product", FP32, 2 * columns * config["bands"] * bins)
    magnitude = ledger.new(bins, columns, item=FP32)
    angles = ledger.each(ledger.each(magnitude), item=COMPLEX)
    previous = None  # held while the next is made
    with ledger.repeat(ITERATIONS // 2):
        for _ in range(2):  # the second has a previous one
            rebuilt = to_spectrum(to_wave(ledger.each(angles, magnitude)))
            angles = ledger.each(rebuilt, ledger.each(rebuilt, rebuilt))
            ledger.spend("activation", FP32, magnitude.count)  # their lengths
            angles = ledger.each(angles, ledger.each(angles, shape=magnitude.shape, item=FP32))
            previous = rebuilt  # noqa: F841
