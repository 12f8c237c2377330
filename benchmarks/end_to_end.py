"""Sampling beside diffusers on the same weights and inputs, and a whole run of the command.

`python -m kinema.benchmarks.end_to_end`: diffusers' `WanTransformer3DModel` in the loop of its
`WanPipeline` (text padded to 512 tokens, two forwards a guided step), eager and compiled, and
kinema's step, all on the embedded model's trained weights, taking turns in one process. Then the
time from starting the command to a finished file. Writes results/end_to_end.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime import engine as engines
from ..runtime.checkpoint import open_checkpoint
from ..runtime.denoise import denoise, schedule_tracks
from ..runtime.latents import initial_noise
from ..runtime.pipeline import bind
from ..runtime.plan import Track
from ..runtime.text import MAX_TOKENS
from .measure import interleave, median_ratio, provenance, summary, write_rows

PROMPT = "a red ball bounces on the grass"
GUIDANCE_SCALE = 3.0


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the ratios and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m kinema.benchmarks.end_to_end")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    rows: dict[str, Any] = {"provenance": provenance("diffusers", "transformers"), "rows": []}
    for dtype in ("float32", "bfloat16"):
        rows["rows"].append(compare(dtype, options.steps, options.repeats, not options.no_compile))
        print(describe(rows["rows"][-1]), flush=True)
    rows["command"] = whole_command(3)
    print(f"command, start to file: {rows['command']['median_s']:.2f} s")
    print(f"wrote {write_rows('end_to_end', rows)}")


def compare(dtype: str, steps: int, repeats: int, compiled: bool) -> dict[str, Any]:
    """One row: seconds of each sampler in a dtype, and ratios to kinema's."""
    checkpoint = open_checkpoint()
    engine = engines.load(checkpoint, device="cpu", dtype=dtype)
    shape = engine.plan(PROMPT).latent_shape
    noise = initial_noise(shape, seed=0)
    config = checkpoint.component("scheduler").config
    samplers: dict[str, Callable[[], Tensor]] = {
        "kinema": lambda: kinema_sample(engine, noise, config, steps),
        "diffusers eager": reference_sampler(engine, noise, config, steps, False),
    }
    if compiled:
        samplers["diffusers compiled"] = reference_sampler(engine, noise, config, steps, True)
    results = {name: sample() for name, sample in samplers.items()}
    seconds = interleave(samplers, repeats)
    error = (results["kinema"] - results["diffusers eager"]).abs().max()
    ours = seconds["kinema"]
    return {
        "dtype": dtype,
        "latent_shape": list(shape),
        "steps": steps,
        "guidance_scale": GUIDANCE_SCALE,
        "text_tokens": MAX_TOKENS,
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "ratio": {
            name: round(median_ratio(values, ours), 3)
            for name, values in seconds.items()
            if name != "kinema"
        },
        "max_error_over_rms": float(error / results["diffusers eager"].square().mean().sqrt()),
    }


@torch.inference_mode()
def kinema_sample(
    engine: engines.Engine, noise: Tensor, config: dict[str, Any], steps: int
) -> Tensor:
    """Prompt to latents as one track, as the reference denoises."""
    whole = Track("picture", 0, noise.shape[-2], GUIDANCE_SCALE)
    tracks = schedule_tracks([whole], config, steps)
    latents = noise
    for step in denoise(bind(engine, [PROMPT], [""], tracks, noise.shape), noise, tracks):
        latents = step.latents
    return latents


def reference_sampler(
    engine: engines.Engine, noise: Tensor, config: dict[str, Any], steps: int, compiled: bool
) -> Callable[[], Tensor]:
    """The loop of `WanPipeline.__call__` between its text encoder and its VAE."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    folder = engine.checkpoint.component("transformer").folder
    model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=engine.dtype).eval()
    if compiled:
        model = torch.compile(model)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)

    @torch.inference_mode()
    def sample() -> Tensor:
        embeds = engine.text_encoder.encode([PROMPT, ""]).embeds.to(engine.dtype)
        padded = torch.nn.functional.pad(embeds, (0, 0, 0, MAX_TOKENS - embeds.shape[1]))
        prompt, negative = padded.split(1)
        scheduler.set_timesteps(steps)
        latents = noise
        for timestep in scheduler.timesteps:
            expanded = timestep.expand(1)
            latents_in = latents.to(engine.dtype)
            wanted = model(latents_in, expanded, prompt, return_dict=False)[0]
            unwanted = model(latents_in, expanded, negative, return_dict=False)[0]
            guided = unwanted + GUIDANCE_SCALE * (wanted - unwanted)
            latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
        return latents

    return sample


def whole_command(repeats: int) -> dict[str, float]:
    """Seconds from starting `kinema generate` with its defaults to the finished file."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats + 1):
            path = Path(folder) / f"{turn}.mp4"
            command = [sys.executable, "-m", "kinema", "generate", PROMPT, "-o", str(path)]
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:
                seconds.append(time.perf_counter() - started)
    return summary(seconds)


def describe(row: dict[str, Any]) -> str:
    """A row in one line."""
    parts = [f"{name} {values['median_s']:.3f} s" for name, values in row["seconds"].items()]
    ratios = [f"{value:.2f} times {name}" for name, value in row["ratio"].items()]
    return f"{row['dtype']}: {', '.join(parts)}; kinema is {', '.join(ratios)}"


if __name__ == "__main__":
    main()
