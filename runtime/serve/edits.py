"""A video made anew from one that is there: its latents, noised part of the way, are denoised with
another prompt (SDEdit, Meng et al., 2022). What the noise leaves, stays: the layout, and where
things move.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UsageError
from ..sessions import pipeline
from ..vaes.encode import encode_chunks, encode_pixels, to_pixels
from . import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..engine import Engine
    from ..planning.plan import Plan
    from ..requests.request import Request
    from .sources import Source


def check(engine: Engine) -> None:
    """Raises `UsageError` where the model cannot edit."""
    presets = engine.checkpoint.presets
    if presets.last_frame == "needed" or presets.conditions == "beside":
        raise UsageError("this model animates a picture; it cannot edit a video")


@torch.inference_mode()
def edited(
    engine: Engine, request: Request, source: Source, strength: float, start: int = 0
) -> Request:
    """The request, begun at sigma `strength` from the source instead of at noise.

    start: the frame of the source that is the request's first.
    """
    plan = engine.plan(request)
    sigmas = pipeline.table_of(plan, engine.scheduler_config).sigmas.tolist()
    left = tuple(dict.fromkeys(sigma for sigma in sigmas if 0 < sigma <= strength))
    left = left or tuple(dict.fromkeys(s for s in sigmas if s > 0))[-1:]
    request = replace(request, num_inference_steps=None, sigmas=left)
    plan = engine.plan(request)
    generator = torch.Generator("cpu").manual_seed(plan.seed)
    noise = pipeline.start(request, plan, generator)
    tracks, _ = pipeline.scheduled(plan, engine.scheduler_config, generator)
    clean, mixed = latents_of(engine, plan, source, start), noise.clone()
    for track in tracks:
        sigma = float(track.schedule.sigmas[0])
        rows = (..., track.rows, slice(None))
        mixed[rows] = (1 - sigma) * clean[rows] + sigma * noise[rows]
    return replace(request, latents=mixed)


def latents_of(engine: Engine, plan: Plan, source: Source, start: int) -> Tensor:
    """Latents (1, C, F, H, W) in fp32 of a video's picture and sound from a frame on, at a plan's
    size."""
    frames = source.first(plan.num_frames, plan.fps, start)
    pixels = [
        to_pixels(_image(pictures.cover(frame, plan.width, plan.height)), plan.height, plan.width)
        for frame in frames
    ]
    vae = engine.use("vae")
    clip = torch.stack(pixels, dim=2).to(engine.device)
    if hasattr(vae, "encode_chunks"):
        chunks = [clip[:, :, :1], *clip[:, :, 1:].split(4, dim=2)]
        picture = encode_chunks(vae, iter(chunks), plan.setting.tile)
    else:
        picture = encode_pixels(vae, clip, plan.setting.tile)
    if engine.sound is None:
        return picture.cpu()
    config = engine.sound.config
    wave = source.sound(config.sample_rate, (start + plan.num_frames) / config.fps)[:, 0]
    wave = wave[round(start * config.sample_rate / config.fps) :]
    codes = engine.sound.encode(torch.from_numpy(wave).to(engine.device), plan.num_frames)
    return torch.cat([picture.cpu(), engine.sound.to_rows(codes[None]).cpu()], dim=-2)


def _image(frame) -> Image:
    from PIL import Image

    return Image.fromarray(frame)
