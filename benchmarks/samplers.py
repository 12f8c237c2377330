"""What makes a video from noise: our step by each executor, exported graphs, and the peers.

All sample the same noise of the same model in the same number of steps, from prompt to latents, as
one track.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..export.calibration import psnr, ssim
from ..runtime import engine as engines
from ..runtime.checkpoints.presets import TEXT_LENGTH
from ..runtime.errors import KinemaError
from ..runtime.execution import executor as executors
from ..runtime.planning.plan import Plan, Track
from ..runtime.sampling.denoise import denoise
from ..runtime.sampling.latents import initial_noise
from ..runtime.sampling.tracks import schedule_tracks
from ..runtime.sessions.binding import bind
from ..runtime.vaes.decode import decode_frames
from .measure import BASE, PROMPT, finished

PACKAGES = ("diffusers", "transformers", "onnxruntime", "cache-dit")
RUNNERS = (
    BASE, "diffusers compiled", "cache-dit",
    "kinema eager", "kinema packed", "kinema compiled", "kinema graph", "onnxruntime",
)  # fmt: skip
# For a model of few blocks and steps: one block is always computed, to see what changed, and a
# fifth of the steps come before any is reused. All else is cache-dit's default.
CACHED = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "enable_separate_cfg": True}

Sampler = Callable[[], Tensor]


@dataclass(frozen=True)
class Terms:
    """What all sample: the noise of seed 0 of a model, in so many steps."""

    source: str | None = None
    device: str = "cpu"
    steps: int = 20
    num_frames: int | None = None
    batch: int = 1

    def engine(self, dtype: str, **options: Any) -> engines.Engine:
        """The model, open in a dtype."""
        return engines.load(self.source, self.device, dtype, **options)

    def plan(self) -> Plan:
        """What the model makes unless told otherwise."""
        engine = self.engine("float32", executor="eager")
        return engine.plan(PROMPT, num_frames=self.num_frames)

    def noise(self, shape: tuple[int, int, int, int]) -> Tensor:
        """Noise of as many seeds as the batch has."""
        drawn = [initial_noise(shape, seed) for seed in range(self.batch)]
        return torch.cat(drawn).to(self.device)

    def shapes(self, shape: Sequence[int], scale: float) -> str:
        """As a row has them."""
        return f"latents={'x'.join(map(str, shape))} steps={self.steps} guidance={scale:g}"


def name_of(terms: Terms) -> str:
    """The model, as a row has it."""
    return "embedded" if terms.source is None else Path(terms.source).name


def missing(name: str, device: str, dtype: str) -> str | None:
    """Why something cannot run here; None if it can."""
    if name.startswith("kinema "):
        return executors.MISSING[name.removeprefix("kinema ")](torch.device(device))
    if name == "diffusers compiled":
        return executors.MISSING["compiled"](torch.device(device))
    if name == "cache-dit" and find_spec("cache_dit") is None:
        return "cache-dit is not installed: pip install cache-dit"
    if name == "onnxruntime":
        if find_spec("onnxruntime") is None or find_spec("onnx") is None:
            return "onnxruntime is not installed: pip install 'kinema[export]'"
        if device != "cpu":
            return "our graphs run on a CPU here"
        if dtype != "float32":
            return f"our graphs run in float32 on a CPU, not in {dtype}"
    return None


def sampler(
    name: str, terms: Terms, dtype: str, noise: Tensor, scale: float, exports: Path
) -> Sampler:
    """What samples so, ready to go."""
    if not name.startswith("kinema ") and name != "onnxruntime":
        engine = terms.engine(dtype, executor="eager")
        return reference_sampler(engine, noise, terms.steps, scale, name)
    if name == "onnxruntime":
        engine = terms.engine(dtype, engines=exported(terms, exports))
    else:
        engine = terms.engine(dtype, executor=name.removeprefix("kinema "))
    return kinema_sampler(engine, noise, terms.steps, scale)


def exported(terms: Terms, folder: Path) -> Path:
    """Our graphs for onnxruntime; those that are there, if they are of these weights."""
    from ..export.exporting import export

    place = folder / f"{name_of(terms)}_onnx"
    if place.is_dir():
        try:
            terms.engine("float32", engines=place)
            return place
        except KinemaError:
            pass
    export(terms.source, "onnx", place, components=["transformer"], overwrite=True)
    return place


# ---- ours ----------------------------------------------------------------------------------------


def kinema_sampler(
    engine: engines.Engine, noise: Tensor, steps: int, scale: float, batched: bool = True
) -> Sampler:
    """Prompt to latents as one track, as the reference denoises; both branches `batched`, or in
    two passes."""
    config = engine.checkpoint.component("scheduler").config
    count = noise.shape[0]

    @torch.inference_mode()
    def sample() -> Tensor:
        whole = Track("picture", 0, noise.shape[-2], scale)
        tracks = schedule_tracks([whole], config, steps)
        prompts = [PROMPT] * count, [""] * count
        predict = bind(engine, *prompts, tracks, noise.shape, batched=batched)
        latents = noise
        for step in denoise(predict, noise, tracks):
            latents = step.latents
        return finished(latents)

    return sample


# ---- the reference -------------------------------------------------------------------------------


def reference_sampler(
    engine: engines.Engine, noise: Tensor, steps: int, scale: float, name: str = BASE
) -> Sampler:
    """The loop of `WanPipeline.__call__` between its text encoder and its VAE."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    model, before = reference_model(engine, steps, name)
    config = engine.checkpoint.component("scheduler").config
    # Any: its annotations ask for `FloatTensor`, which is no type that a tensor has.
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(config)
    count = noise.shape[0]

    @torch.inference_mode()
    def sample() -> Tensor:
        before()
        embeds = engine.text_encoder.encode([PROMPT, ""]).embeds.to(engine.dtype)
        padded = nn.functional.pad(embeds, (0, 0, 0, TEXT_LENGTH - embeds.shape[1]))
        prompt, negative = (text.expand(count, -1, -1) for text in padded.split(1))
        scheduler.set_timesteps(steps)
        latents = noise
        for timestep in scheduler.timesteps:
            expanded = timestep.expand(count).to(noise.device)
            latents_in = latents.to(engine.dtype)
            wanted = model(latents_in, expanded, prompt, return_dict=False)[0]
            unwanted = model(latents_in, expanded, negative, return_dict=False)[0]
            guided = unwanted + scale * (wanted - unwanted)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return finished(latents)

    return sample


def reference_model(
    engine: engines.Engine, steps: int, name: str
) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """diffusers' transformer, and what is to be called before each video."""
    from diffusers import WanTransformer3DModel

    folder = engine.checkpoint.component("transformer").folder
    model = WanTransformer3DModel.from_pretrained(folder, dtype=engine.dtype).eval()
    # diffusers wraps `to` so that to a checker it has lost its self
    model = model.to(engine.device)  # pyright: ignore[reportArgumentType]
    if name == "diffusers compiled":
        return torch.compile(model), lambda: None
    if name != "cache-dit":
        return model, lambda: None
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "WARNING")  # else it talks on standard output
    import cache_dit  # pyright: ignore[reportMissingImports]  # a peer, installed by hand

    options = {**CACHED, "max_warmup_steps": steps // 5, "num_inference_steps": steps}
    cache_dit.enable_cache(model, cache_config=cache_dit.DBCacheConfig(**options))
    return model, lambda: cache_dit.refresh_context(model, num_inference_steps=steps)


# ---- quality -------------------------------------------------------------------------------------


def frames_of(engine: engines.Engine, latents: Tensor) -> np.ndarray:
    """The pictures of latents, (frames, height, width, 3)."""
    tracks = engine.plan(PROMPT).tracks
    own = latents[:1, :, :, : tracks[0].stop].float()
    return np.concatenate(list(decode_frames(engine.vae, own)))


def beside(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """PSNR in dB, at most 100, and SSIM."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    return psnr(found, wanted), ssim(torch.from_numpy(found), torch.from_numpy(wanted))
