"""What values a transformer's products see, and what 8 bits cost: by making short videos.

Prompts are the checkpoint's own examples where it has some. Videos are made at the smallest size
and the shortest length that a model has, the embedded model's at its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.formats import LEAST_PEAK
from ..runtime.requests.request import Request
from .eight_bits import LARGEST, nearest, watched

if TYPE_CHECKING:
    from ..runtime.checkpoints.checkpoint import Checkpoint
    from ..runtime.engine import Engine
    from ..runtime.media.video import Video

PROMPTS = (
    "a red ball bounces on the grass",
    "a woman walks through a busy street at night, neon signs reflected in the rain",
    "waves break on a rocky shore, seen from above",
    "close-up of a cat that looks into the camera, soft light from a window",
)
MOST_PROMPTS, STEPS = 4, 10
FEW_STEPS = 4  # where a step is large
FIRST_SEED, FIRST_HELD_OUT_SEED = 0, 1000
# Parts of the largest value at which int8 may clip: the one with the least squared error is taken.
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass
class Sampler:
    """Makes videos with one of a checkpoint's transformers replaced by another."""

    checkpoint: Checkpoint
    component: str
    prompts: tuple[str, ...]

    @cached_property
    def engine(self) -> Engine:
        """In float32, on the CPU."""
        from ..runtime.engine import load

        return load(self.checkpoint, "cpu", "float32", executor="eager")

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, component: str, prompts: Sequence[str] | None = None
    ) -> Sampler:
        """With these prompts, else the checkpoint's own examples, else `PROMPTS`."""
        examples = (checkpoint.vocabulary or {}).get("examples", ())
        found = prompts or examples[:MOST_PROMPTS] or PROMPTS
        return cls(checkpoint, component, tuple(found))

    def run(self, transformer: nn.Module) -> None:
        """Let `transformer` take the steps of each prompt's video."""
        self.videos(transformer, FIRST_SEED, "latents")

    def videos(
        self, transformer: nn.Module, seed: int = FIRST_HELD_OUT_SEED, output: str = "video"
    ) -> list[Video]:
        """A video of each prompt, with `transformer` in the component's place."""
        self.engine.placed.pop(self.component, None)
        setattr(self.engine, self.component, transformer)
        requests = (self._request(prompt, seed + i) for i, prompt in enumerate(self.prompts))
        return [self.engine.generate(replace(request, output=output)) for request in requests]

    def _request(self, prompt: str, seed: int) -> Request:
        presets = self.checkpoint.presets
        if self.checkpoint.vocabulary is not None:
            return Request(prompt, seed=seed, num_inference_steps=STEPS)
        side = presets.min_size
        sizes = {"width": side, "height": side, "num_frames": 1 + presets.frame_stride}
        if presets.sigmas is None:
            sizes["num_inference_steps"] = FEW_STEPS
        return Request(prompt, seed=seed, **sizes, **_pictures(presets, side))


def _pictures(presets: Any, side: int) -> dict[str, Any]:
    """What a model that animates pictures is shown: a gradient."""
    if presets.conditions != "beside":
        return {}
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), axis=-1)
    shown = {"image": picture}
    return {**shown, "last_image": picture} if presets.last_frame == "needed" else shown


# ---- scales --------------------------------------------------------------------------------------


def calibrate(
    sampler: Sampler, model: nn.Module, products: Mapping[str, nn.Linear], to: str
) -> dict[str, float]:
    """The step between 8-bit values of each product's input, for the whole tensor.

    fp8 reaches to the largest value seen, since its steps are fine near zero anyway. int8 may clip
    a little, where that has the least squared error.
    """
    peaks = dict.fromkeys(products, LEAST_PEAK)

    def see(name: str, x: Tensor) -> None:
        peaks[name] = max(peaks[name], x.abs().amax().item())

    with watched(products, see):
        sampler.run(model)
    scales = {name: peak / LARGEST[to] for name, peak in peaks.items()}
    if to == "fp8":
        return scales
    errors = {name: torch.zeros(len(CLIPS), dtype=torch.float64) for name in products}

    def measure(name: str, x: Tensor) -> None:
        for i, part in enumerate(CLIPS):
            scale = part * scales[name]
            error = nearest(x / scale, to) * scale - x
            errors[name][i] += error.square().sum().item()

    with watched(products, measure):
        sampler.run(model)
    return {name: scale * CLIPS[int(errors[name].argmin())] for name, scale in scales.items()}


# ---- quality -------------------------------------------------------------------------------------


def quality(sampler: Sampler, exact: nn.Module, quantized: nn.Module) -> dict[str, float]:
    """What a transformer's videos differ by from the exact one's, on seeds of their own.

    Means over prompts: PSNR in dB and SSIM of frames, and the latents' error relative to their RMS;
    the least PSNR beside, for a video that takes another course is another video.
    """
    wanted = sampler.videos(exact)
    found = sampler.videos(quantized)
    rows = [compare(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {"videos": len(rows), **means, "least_psnr": min(row["psnr"] for row in rows)}


def compare(found: Video, wanted: Video) -> dict[str, float]:
    """Two videos of one request: "psnr", "ssim" and "latents_relative_rms"."""
    assert found.frames is not None and wanted.frames is not None
    assert found.latents is not None and wanted.latents is not None
    ours, theirs = found.frames.astype(np.float64), wanted.frames.astype(np.float64)
    difference = (found.latents - wanted.latents).double()
    scale = wanted.latents.double().square().mean().sqrt()
    return {
        "psnr": psnr(ours, theirs),
        "ssim": ssim(torch.from_numpy(ours), torch.from_numpy(theirs)),
        "latents_relative_rms": (difference.square().mean().sqrt() / scale).item(),
    }


MOST_DECIBELS = 100.0  # of frames that are equal


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Of frames from 0 to 255, in dB; `MOST_DECIBELS` at most."""
    error = np.square(found - wanted).mean()
    return min(MOST_DECIBELS, float(10 * np.log10(255**2 / error))) if error else MOST_DECIBELS


def ssim(found: Tensor, wanted: Tensor, window: int = 7) -> float:
    """Mean structural similarity of frames (F, H, W, C) from 0 to 255.

    Wang et al. 2004, with a square window of 7 and variances of a sample, on each channel.
    """
    least_mean, least_spread = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    x, y = (frames.permute(0, 3, 1, 2) for frames in (found, wanted))

    def mean(values: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(values, window, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    unbiased = window**2 / (window**2 - 1)
    spread_x = unbiased * (mean(x * x) - mean_x**2)
    spread_y = unbiased * (mean(y * y) - mean_y**2)
    shared = unbiased * (mean(x * y) - mean_x * mean_y)
    above = (2 * mean_x * mean_y + least_mean) * (2 * shared + least_spread)
    below = (mean_x**2 + mean_y**2 + least_mean) * (spread_x + spread_y + least_spread)
    return (above / below).mean().item()
