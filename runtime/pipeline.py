"""One request from text to frames and sound. Each line is one call; see docs/structure.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .decode import decode_frames, decode_sound
from .denoise import Track, denoise, schedule_tracks, timesteps_of
from .guidance import Denoiser, guide, is_guided
from .latents import as_batch, initial_noise

if TYPE_CHECKING:
    from .engine import Engine
    from .given import Given
    from .plan import Plan
    from .request import Request

Show = Callable[[str, int, int], None]
Stage = Callable[[str], AbstractContextManager[None]]


@torch.inference_mode()
def generate(
    engine: Engine, request: Request, plan: Plan, show: Show, stage: Stage
) -> tuple[np.ndarray | None, np.ndarray | None, Tensor]:
    """Frames uint8 (num_frames, height, width, 3), samples float32 (num_samples, channels) and
    latents fp32.

    `show(stage, index, total)` is told of progress; `stage(name)` is entered around each stage, so
    that it can be timed. Frames and samples are None where the request stops at latents, samples
    for a silent model too.
    """
    with stage("load"):
        engine.open_components()
    with stage("encode"):
        tracks = schedule_tracks(plan.tracks, engine.scheduler_config, plan.num_inference_steps)
        latents = start(request, plan).to(engine.device)
        given = engine.given(plan)
        prompts = [request.prompt], [request.negative_prompt]
        predict = bind(engine, *prompts, tracks, latents.shape, given)
        show("encode", 1, 1)
    with stage("denoise"):
        for step in denoise(predict, latents, tracks):
            latents = step.latents
            show("denoise", step.index + 1, step.total)
    if request.output == "latents":
        return None, None, latents.cpu()
    with stage("decode"):
        frames = picture(engine, plan, latents, show)
        audio = sound(engine, plan, latents)
    return frames, audio, latents.cpu()


def start(request: Request, plan: Plan) -> Tensor:
    """The noise that the request brings, or its seed's: (1, C, F, H, W) in fp32."""
    if request.latents is not None:
        return as_batch(request.latents)
    return initial_noise(plan.latent_shape, plan.seed)


def bind(
    engine: Engine,
    prompts: list[str],
    negative_prompts: list[str],
    tracks: Sequence[Track],
    latent_shape: Sequence[int],
    given: Given | None = None,
) -> Denoiser:
    """A guided denoiser of these prompts, all that is constant in it computed."""
    rows = prompts + negative_prompts if is_guided(tracks) else prompts
    text = engine.text_encoder.encode(rows)
    shape, timesteps = tuple(latent_shape), timesteps_of(tracks).to(engine.device)
    if given is None:
        return guide(engine.transformer.bind(shape, timesteps, *text), tracks)
    timesteps = given.timesteps(timesteps)
    return given.show(guide(engine.transformer.bind(given.shape(shape), timesteps, *text), tracks))


def picture(engine: Engine, plan: Plan, latents: Tensor, show: Show) -> np.ndarray:
    """Frames of the first track's rows, decoded chunk by chunk."""
    chunks = []
    for chunk in decode_frames(engine.vae, latents[..., plan.tracks[0].rows, :]):
        chunks.append(chunk)
        show("decode", sum(map(len, chunks)), plan.num_frames)
    return np.concatenate(chunks)


def sound(engine: Engine, plan: Plan, latents: Tensor) -> np.ndarray | None:
    """Samples of the last track's rows, if the model has sound."""
    if engine.sound is None:
        return None
    return decode_sound(engine.sound, latents[..., plan.tracks[-1].rows, :], plan.num_samples)
