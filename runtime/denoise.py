"""The step: predict, guide, solve. It knows tracks, and no family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import schedule, solvers
from .errors import UsageError
from .guidance import Denoiser
from .schedule import Schedule
from .solvers import History, Solver

if TYPE_CHECKING:
    from . import plan


@dataclass(frozen=True)
class Track:
    """Latent rows that are denoised on a schedule of their own, in one forward with the others."""

    rows: slice
    guidance_scale: float
    schedule: Schedule
    solve: Solver


class Step(NamedTuple):
    """Step `index` of `total` is done: `latents` (B, C, F, H, W), the first track's at `sigma`."""

    index: int
    total: int
    sigma: float
    latents: Tensor


@torch.no_grad()
def denoise(predict: Denoiser, latents: Tensor, tracks: Sequence[Track]) -> Iterator[Step]:
    """Take latents (B, C, F, H, W) from noise to clean; yield after each step.

    Stop by closing the iterator. Latents stay in the dtype they come in (fp32, as the reference).
    Raises `UsageError` where the tracks do not cover the rows of the latents in order.
    """
    check_tracks(tracks, latents.shape[-2])
    total, sigmas = len(tracks[0].schedule), tracks[0].schedule.sigmas.tolist()
    histories: list[History] = [()] * len(tracks)
    for index in range(total):
        prediction = predict(latents, index)
        solved = []
        for i, track in enumerate(tracks):
            before, flow = latents[..., track.rows, :], prediction[..., track.rows, :]
            after, histories[i] = track.solve(before, flow, index, histories[i])
            solved.append(after)
        latents = torch.cat(solved, dim=-2)
        yield Step(index, total, sigmas[index + 1], latents)


def schedule_tracks(
    tracks: Iterable[plan.Track], config: Mapping[str, Any], num_steps: int
) -> tuple[Track, ...]:
    """Give a plan's tracks their sigmas and solvers, from a scheduler config."""
    table, build = schedule.from_config(config, num_steps), solvers.from_config(config)
    shifted = [(track, table.shifted(track.shift)) for track in tracks]
    return tuple(
        Track(track.rows, track.guidance_scale, own, build(own.sigmas)) for track, own in shifted
    )


def timesteps_of(tracks: Sequence[Track]) -> Tensor:
    """What a denoiser is told: (num_steps,) if all tracks agree, else (num_steps, 1, rows, 1)."""
    first = tracks[0].schedule.timesteps
    if all(torch.equal(track.schedule.timesteps, first) for track in tracks):
        return first
    rows = [
        track.schedule.timesteps[:, None].expand(-1, track.rows.stop - track.rows.start)
        for track in tracks
    ]
    return torch.cat(rows, dim=1)[:, None, :, None]


def check_tracks(tracks: Sequence[Track], rows: int) -> None:
    """Raise `UsageError` unless the tracks cover `rows` rows in order and step alike."""
    ends = [0, *(track.rows.stop for track in tracks)]
    spans = [(track.rows.start, track.rows.stop) for track in tracks]
    if [span[0] for span in spans] != ends[:-1] or ends[-1] != rows:
        raise UsageError(f"tracks {spans} do not cover latent rows 0 to {rows} in order")
    if len(counts := {len(track.schedule) for track in tracks}) > 1:
        raise UsageError(f"tracks have different numbers of steps: {sorted(counts)}")
