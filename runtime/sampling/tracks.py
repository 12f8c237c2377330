"""Tracks: rows of the latents that are denoised on a schedule of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UsageError
from ..requests.guidance_options import Guidance, Scale
from . import schedule, solvers
from .sigmas import Schedule
from .solvers import Solver

if TYPE_CHECKING:
    from ..planning import plan


@dataclass(frozen=True)
class Track:
    """Latent rows that are denoised on a schedule of their own, in one forward with the others."""

    rows: slice
    guidance_scale: Scale
    schedule: Schedule
    solve: Solver


def schedule_tracks(
    tracks: Iterable[plan.Track],
    config: Mapping[str, Any],
    num_steps: int | None,
    *,
    solver: str | None = None,
    guidance: Guidance | None = None,
    generator: torch.Generator | None = None,
    table: Schedule | None = None,
    **steps: Any,
) -> tuple[Track, ...]:
    """Give a plan's tracks their sigmas, guidance scales and solvers, from a scheduler config.

    `solver`, and `steps` (sigmas, timesteps, sequence_length), are as of `schedule.from_config`;
    solvers that add noise draw it from where `generator` stands. `table`, where it is given, takes
    the place of the config's.
    """
    tracks, guidance = tuple(tracks), guidance or Guidance()
    if table is None:
        table = schedule.from_config(config, num_steps, solver=solver, **steps)
    build = solvers.from_config(config, solver)
    generators = [None] * len(tracks)
    if generator is not None:
        generators = solvers.generators(generator, len(tracks))
    scheduled = []
    for track, own_generator in zip(tracks, generators, strict=True):
        own = table.shifted(track.shift)
        scales = guidance.scales(track.guidance_scale, own)
        scheduled.append(Track(track.rows, scales, own, build(own, own_generator)))
    return tuple(scheduled)


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
