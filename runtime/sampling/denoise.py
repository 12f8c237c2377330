"""The step: predict, guide, solve. It knows tracks, and no family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .guidance import Denoiser
from .solvers import History
from .tracks import Track, check_tracks


class State(NamedTuple):
    """A run between two steps: `index` steps are done; the next one needs this and nothing else."""

    index: int
    latents: Tensor
    histories: tuple[History, ...]


class Step(NamedTuple):
    """Step `index` of `total` is done: `latents` (B, C, F, H, W), the first track's at `sigma`.

    It took `seconds`; those to come should take `seconds_left`, decoding apart.
    """

    index: int
    total: int
    sigma: float
    latents: Tensor
    seconds: float = 0.0
    seconds_left: float = 0.0


def begin(latents: Tensor, tracks: Sequence[Track]) -> State:
    """Before the first step. `UsageError` where tracks do not cover the rows of latents in order.

    Latents stay in the dtype they come in (fp32, as the reference).
    """
    check_tracks(tracks, latents.shape[-2])
    return State(0, latents, ((),) * len(tracks))


@torch.no_grad()
def advance(predict: Denoiser, state: State, tracks: Sequence[Track]) -> State:
    """The step: predict once, and let each track's solver move its own rows."""
    prediction = predict(state.latents, state.index)
    solved, histories = [], []
    for track, history in zip(tracks, state.histories, strict=True):
        before, flow = state.latents[..., track.rows, :], prediction[..., track.rows, :]
        after, history = track.solve(before, flow, state.index, history)
        solved.append(after)
        histories.append(history)
    return State(state.index + 1, torch.cat(solved, dim=-2), tuple(histories))


def denoise(predict: Denoiser, latents: Tensor, tracks: Sequence[Track]) -> Iterator[Step]:
    """Take latents (B, C, F, H, W) from noise to clean; yield after each step.

    Stop by closing the iterator. Raises as `begin` does.
    """
    state, total = begin(latents, tracks), len(tracks[0].schedule)
    sigmas = tracks[0].schedule.sigmas.tolist()
    while state.index < total:
        state = advance(predict, state, tracks)
        yield Step(state.index - 1, total, sigmas[state.index], state.latents)
