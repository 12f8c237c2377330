"""One request from text to frames and sound. Each line is one call; see docs/structure.md.

What happens between the steps is `session.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..conditioning.shown import given_of
from ..requests.solver_names import LOOK_AHEAD
from ..sampling import schedule
from ..sampling.experts import Expert, experts_of, with_scales
from ..sampling.guidance import Denoiser
from ..sampling.latents import as_batch, draw_noise
from ..sampling.predictions import scale_input
from ..sampling.sigmas import Schedule
from ..sampling.tracks import Track, schedule_tracks
from ..vaes.decode import decode_frames, decode_sound
from .binding import bind

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan
    from ..requests.request import Request


class Bound(NamedTuple):
    """What a request's steps share: computed before the first, given back when a session pauses.

    `sigmas` are the picture's, one more than there are predictions. `finish` is for the latents of
    the last step.
    """

    tracks: Sequence[Track]
    predict: Denoiser
    sigmas: list[float]
    finish: Callable[[Tensor], Tensor]


@torch.inference_mode()
def prepare(engine: Engine, request: Request, plan: Plan) -> tuple[Bound, Tensor]:
    """All that is constant in a request, and the latents (1, C, F, H, W) in fp32 to start from."""
    generator = torch.Generator("cpu").manual_seed(plan.seed)
    latents = start(request, plan, generator).to(engine.device)
    tracks, experts = scheduled(plan, engine.scheduler_config, generator)
    table = tracks[0].schedule
    given = given_of(engine, request, plan)
    prompts = [request.prompt], [request.negative_prompt]
    shape, batched = latents.shape, plan.setting.guidance == "batched"
    predict = bind(engine, *prompts, tracks, shape, given, experts, plan.guidance, batched)
    bound = Bound(tracks, scale_input(predict, table), table.sigmas.tolist(), given.finish)
    return bound, latents * table.initial_scale


def start(request: Request, plan: Plan, generator: torch.Generator) -> Tensor:
    """The noise that the request brings, or its seed's: (1, C, F, H, W) in fp32."""
    if request.latents is not None:
        return as_batch(request.latents)
    return draw_noise(plan.latent_shape, generator)


def scheduled(
    plan: Plan, config: Mapping[str, Any], generator: torch.Generator
) -> tuple[Sequence[Track], Sequence[Expert]]:
    """Tracks on the plan's sigmas or else the scheduler config's, and who predicts when.

    What solvers draw, they draw from where the generator stands after the first noise.
    """
    table = table_of(plan, config)
    tracks = schedule_tracks(
        with_scales(plan, table),
        config,
        plan.num_inference_steps,
        solver=plan.solver,
        guidance=plan.guidance,
        generator=generator,
        table=table,
    )
    return tracks, experts_of(plan, table)


def table_of(plan: Plan, config: Mapping[str, Any]) -> Schedule:
    """The sigmas of a plan, else those of a scheduler config for as many steps."""
    if plan.sigmas is None:
        return schedule.from_config(config, plan.num_inference_steps, solver=plan.solver)
    table = schedule.from_sigmas(plan.sigmas, inverted=bool(config.get("invert_sigmas")))
    return table.doubled() if plan.solver in LOOK_AHEAD else table


def picture(engine: Engine, plan: Plan, latents: Tensor) -> Iterator[np.ndarray]:
    """Frames of the first track's rows, uint8 (frames, height, width, 3), chunk by chunk."""
    own = latents[:, :, plan.num_references :, plan.tracks[0].rows]
    chunks = decode_frames(engine.use("vae"), own, plan.setting.tile)
    while (chunk := next(chunks, None)) is not None:
        yield chunk
        engine.use("vae")  # other work may have used the device meanwhile


def sound(engine: Engine, plan: Plan, latents: Tensor) -> np.ndarray | None:
    """Samples (num_samples, channels) of the last track's rows, if the model has sound."""
    if engine.sound is None:
        return None
    return decode_sound(engine.sound, latents[..., plan.tracks[-1].rows, :], plan.num_samples)
