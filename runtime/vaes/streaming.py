"""Coding a clip a latent frame at a time, by functions of a frame and of what came before it.

An autoencoder has four of them: the first frame of a clip has its own two. What came before is a
flat list of tensors whose shapes are the same after every frame, so that each function can be
traced, exported and run elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError
from .geometry import GROUP, Tile, stride_of

First = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
Next = Callable[[Tensor, Iterable[Tensor]], tuple[Tensor, list[Tensor]]]


class Streaming:
    """The loops over the four functions; whoever has these inherits the loops.

    `decode_first` and `decode_next` make pixels (B, 3, 1 or 4, H, W) from -1 to 1 of raw latents
    (B, C, 1, h, w), `encode_first` and `encode_next` the reverse.
    """

    config: Any

    def decode_first(self, latents: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One frame of pixels of the first latent frame, and what the next needs of it."""
        raise NotImplementedError

    def decode_next(self, latents: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Four frames of pixels of any later latent frame, and what the next needs."""
        raise NotImplementedError

    def encode_first(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A latent frame of the first frame of pixels, and what the next needs of it."""
        raise NotImplementedError

    def encode_next(self, pixels: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A latent frame of the next four frames of pixels, and what the next needs."""
        raise NotImplementedError

    def decode_chunks(self, latents: Tensor, tile: Tile | None = None) -> Iterator[Tensor]:
        """Pixels (B, 3, 1 or 4, H, W) about -1..1 of each latent frame of (B, C, F, h, w)."""
        self.refuse(tile)
        return stream(self.decode_first, self.decode_next, latents.split(1, dim=2))

    def encode(self, pixels: Tensor, tile: Tile | None = None) -> Tensor:
        """Latents (B, C, 1+k, h, w), raw and the likeliest, of pixels (B, 3, 1+4k, H, W) in -1..1.

        Raises `UsageError` where frames or sizes do not fit.
        """
        self.check(pixels)
        chunks = pixels.split([1, *[GROUP] * (pixels.shape[2] // GROUP)], dim=2)
        return self.encode_chunks(chunks, tile)

    def encode_chunks(self, chunks: Iterable[Tensor], tile: Tile | None = None) -> Tensor:
        """The same, of pixels that come in chunks along time: one frame, then four at a time."""
        self.refuse(tile)
        return torch.cat(list(stream(self.encode_first, self.encode_next, chunks)), dim=2)

    def check(self, pixels: Tensor) -> None:
        """Raise `UsageError` where frames or sizes of a clip (B, 3, F, H, W) do not fit."""
        frames, height, width = pixels.shape[2:]
        stride = stride_of(self.config)
        if frames % GROUP != 1 or height % stride or width % stride:
            raise UsageError(
                f"{frames} frames of {width}x{height} do not fit:"
                f" frames are 1 + {GROUP}k, sides multiples of {stride}"
            )

    def refuse(self, tile: Tile | None) -> None:
        """Raise `UsageError` for a tile; an autoencoder that can work in tiles asks elsewhere."""
        if tile is not None:
            raise UsageError(
                f"tile is {tile[1]}x{tile[0]}, but this autoencoder works on whole frames;"
                " tile=None works"
            )


class StreamedVAE(Streaming):
    """An autoencoder of functions that are given: graphs that were exported, say.

    A `picture_vae.PictureVAE`. Without the functions that encode, encoding raises `UsageError`.
    """

    def __init__(
        self,
        config: Any,
        decode_first: First,
        decode_next: Next,
        encode_first: First | None = None,
        encode_next: Next | None = None,
        like: Tensor | None = None,
    ) -> None:
        self.config = config
        self.decode_first, self.decode_next = decode_first, decode_next  # type: ignore[method-assign]
        if encode_first is not None and encode_next is not None:
            self.encode_first, self.encode_next = encode_first, encode_next  # type: ignore[method-assign]
        self.like = torch.empty(0) if like is None else like

    def parameters(self) -> Iterator[Tensor]:
        """A tensor of the dtype and on the device that the functions expect."""
        yield self.like

    def encode_first(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        raise UsageError(
            "this autoencoder was opened without its encoder, which pictures and clips need;"
            " text alone works"
        )


def stream(first: First, following: Next, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """What two functions make of a clip's pieces, one after another."""
    memory: list[Tensor] = []
    for number, piece in enumerate(pieces):
        made, memory = following(piece, given_away(memory)) if number else first(piece)
        yield made


def given_away(tensors: list[Tensor]) -> Iterator[Tensor]:
    """The same tensors, off the list as they are taken: only who takes them holds them then.

    So old memory is freed layer by layer while new memory is made, and there are never two.
    """
    tensors.reverse()
    while tensors:
        yield tensors.pop()
