"""Classifier-free guidance: one batched forward for both branches, a scale for each track."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from torch import Tensor

# predict(latents (B, C, F, H, W), step) -> prediction, of the same shape for each branch it has
Denoiser = Callable[[Tensor, int], Tensor]


class Guided(Protocol):
    """Latent rows with a guidance scale of their own."""

    @property
    def rows(self) -> slice: ...
    @property
    def guidance_scale(self) -> float: ...


def is_guided(tracks: Iterable[Guided]) -> bool:
    """Whether the negative prompt plays any part; as the reference, not at scales of 1 or less."""
    return any(track.guidance_scale > 1 for track in tracks)


def guide(predict: Denoiser, tracks: Iterable[Guided]) -> Denoiser:
    """A denoiser of guided predictions (Ho and Salimans, https://arxiv.org/abs/2207.12598).

    `predict` must be bound to the prompts' rows and then as many negative prompts' rows, unless no
    track is guided: then to the prompts alone, and it is returned as it is.
    """
    tracks = tuple(tracks)
    if not is_guided(tracks):
        return predict

    def guided(latents: Tensor, step: int) -> Tensor:
        positive, negative = predict(latents, step).chunk(2)
        prediction = positive.clone()
        for track in tracks:
            if track.guidance_scale > 1:
                wanted, unwanted = positive[..., track.rows, :], negative[..., track.rows, :]
                guided_rows = unwanted + track.guidance_scale * (wanted - unwanted)
                prediction[..., track.rows, :] = guided_rows
        return prediction

    return guided
