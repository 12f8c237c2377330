"""What the autoencoders share in sizes: frames that are made, beside what makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..ledger import Ledger, Size


def to_uint8(ledger: Ledger, pixels: Size) -> None:
    """`decode.to_uint8`."""
    x = ledger.each(ledger.each(ledger.each(pixels)))
    x = ledger.each(ledger.each(x))
    ledger.each(x, item=1)


@contextmanager
def gathered(ledger: Ledger, frames: int, height: int, width: int) -> Iterator[None]:
    """All frames beside what decodes them, then a second time as one array; on the host."""
    if ledger.on_host:
        chunks = ledger.new(frames, height, width, 3, item=1)
    yield
    if ledger.on_host:
        ledger.each(chunks)
