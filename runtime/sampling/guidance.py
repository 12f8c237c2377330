"""Classifier-free guidance: two branches into one prediction, by scales for tracks and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import UsageError
from ..requests.guidance_options import Guidance, Scale

# predict(latents (B, C, F, H, W), step) -> prediction, of the same shape for each branch it has
Denoiser = Callable[[Tensor, int], Tensor]

STAR_EPS = 1e-8  # of the reference's optimised scale


class Guided(Protocol):
    """Latent rows with a guidance scale of their own: for all predictions, or for each."""

    @property
    def rows(self) -> slice: ...
    @property
    def guidance_scale(self) -> Scale: ...


class Branches(NamedTuple):
    """Denoisers bound to the prompts, to the negative prompts, and to both, prompts first.

    Those that are there are used: `both` for the two branches in one batch, else `positive` and
    `negative` in two passes, in less memory; `positive` where a step needs no guidance. The two
    ways agree to the bit only where a model's rows do not depend on their number: matrix products
    may round otherwise in a batch of two.
    """

    both: Denoiser | None = None
    positive: Denoiser | None = None
    negative: Denoiser | None = None


def is_guided(tracks: Iterable[Guided]) -> bool:
    """Whether the negative prompt plays any part; as the reference, not at scales of 1 or less."""
    return any(max(_every(track.guidance_scale)) > 1 for track in tracks)


def count_branches(tracks: Iterable[Guided], guidance: Guidance, step: int) -> int:
    """How many branches a step runs: 2 where any track is guided, none in steps of zero init."""
    if step < guidance.zero_init_steps:
        return 0
    return 2 if any(_at(track.guidance_scale, step) > 1 for track in tracks) else 1


def branches_needed(
    tracks: Iterable[Guided], guidance: Guidance, num_predictions: int, batched: bool = True
) -> tuple[str, ...]:
    """Which of `Branches` a request uses, so that no other is bound."""
    tracks = tuple(tracks)
    counts = {count_branches(tracks, guidance, step) for step in range(num_predictions)}
    if 2 not in counts:
        return ("positive",)
    if not batched:
        return ("positive", "negative")
    return ("both", "positive") if 1 in counts else ("both",)


def uses_branch(name: str, count: int, batched: bool) -> bool:
    """Whether a step of `count` branches asks the one of this name in `Branches`."""
    if name == "both":
        return count == 2
    if name == "positive":
        return count == 1 or (count == 2 and not batched)
    return count == 2


def guide(
    predict: Denoiser | Branches, tracks: Iterable[Guided], guidance: Guidance | None = None
) -> Denoiser:
    """A denoiser of guided predictions (Ho and Salimans, https://arxiv.org/abs/2207.12598).

    A bare `predict` must be bound to the prompts' rows and then as many negative prompts' rows,
    unless no track is guided: then to the prompts alone, and it is returned as it is. Bound to both
    it runs both at every step; `Branches` with a `positive` run one where one is enough.
    """
    tracks, guidance = tuple(tracks), guidance or Guidance()
    one, two = _one_and_two(predict, is_guided(tracks))
    if not is_guided(tracks) and guidance.zero_init_steps == 0:
        return one

    def guided(latents: Tensor, step: int) -> Tensor:
        branches = count_branches(tracks, guidance, step)
        if branches == 0:
            return torch.zeros_like(latents)
        if branches == 1:
            return one(latents, step)
        positive, negative = two(latents, step)
        parts = [
            _mix(
                positive[..., track.rows, :],
                negative[..., track.rows, :],
                _at(track.guidance_scale, step),
                guidance,
            )
            for track in tracks
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)

    return guided


def _one_and_two(
    predict: Denoiser | Branches, guided: bool
) -> tuple[Denoiser, Callable[[Tensor, int], Sequence[Tensor]]]:
    """How to run the prompts' branch alone, and how to run both."""
    if not isinstance(predict, Branches):
        predict = Branches(both=predict) if guided else Branches(positive=predict)
    both, positive, negative = predict
    if both is not None:

        def one(latents: Tensor, step: int) -> Tensor:
            return both(latents, step).chunk(2)[0]

        def batched(latents: Tensor, step: int) -> Sequence[Tensor]:
            return both(latents, step).chunk(2)

        return positive or one, batched
    if positive is None or (guided and negative is None):
        raise UsageError("guidance needs a denoiser of both branches, or one of each")

    def in_turn(latents: Tensor, step: int) -> Sequence[Tensor]:
        # Where there is no guidance, the second is not asked.
        return positive(latents, step), negative(latents, step)  # pyright: ignore[reportOptionalCall]

    return positive, in_turn


def _mix(positive: Tensor, negative: Tensor, scale: float, guidance: Guidance) -> Tensor:
    if scale <= 1:
        return positive
    if guidance.zero_star:
        negative = negative * _star_scale(positive, negative)
    guided = negative + scale * (positive - negative)
    return _rescaled(guided, positive, guidance.rescale) if guidance.rescale > 0 else guided


def _star_scale(positive: Tensor, negative: Tensor) -> Tensor:
    """What the negative branch is multiplied by to lie closest to the positive one, for each B."""
    wanted, unwanted = positive.flatten(1).float(), negative.flatten(1).float()
    scale = (wanted * unwanted).sum(1) / (unwanted.square().sum(1) + STAR_EPS)
    return scale.to(positive.dtype).reshape(-1, *(1,) * (positive.dim() - 1))


def _rescaled(guided: Tensor, positive: Tensor, rescale: float) -> Tensor:
    """Part of the way to the deviation of the prompt's branch; as it is where it has none."""
    axes = tuple(range(1, guided.dim()))
    wanted, found = positive.std(axes, keepdim=True), guided.std(axes, keepdim=True)
    ratio = torch.where(found > 0, wanted / found, 1.0)
    return rescale * (guided * ratio) + (1 - rescale) * guided


def _every(scale: Scale) -> Sequence[float]:
    return (scale,) if isinstance(scale, (int, float)) else scale


def _at(scale: Scale, step: int) -> float:
    return scale if isinstance(scale, (int, float)) else scale[step]
