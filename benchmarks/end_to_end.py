"""Whole videos by everything that can make them: the same weights, noise and schedule, in turns.

`kinema bench --only video`: diffusers' `WanTransformer3DModel` in the loop of its `WanPipeline`
(text padded to 512 tokens, two forwards a guided step), eager, compiled and with cache-dit, and our
step by each executor and by onnxruntime. From prompt to latents is timed; beside it stand PSNR and
SSIM of the decoded video against the exact one: ours, eager, in fp32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import rows
from .measure import BASE, interleave
from .rows import Row
from .samplers import (
    PACKAGES,
    RUNNERS,
    Sampler,
    Terms,
    beside,
    frames_of,
    kinema_sampler,
    missing,
    name_of,
    sampler,
)


def compare(
    terms: Terms,
    dtype: str,
    repeats: int,
    leave_out: Sequence[str] = (),
    exports: Path | None = None,
) -> list[Row]:
    """Rows of every sampler in a dtype: seconds, ratios to diffusers eager, PSNR and SSIM."""
    plan = terms.plan()
    shape, scale = plan.latent_shape, plan.guidance_scale
    noise = terms.noise(shape)
    about = rows.about(
        "video", name_of(terms), terms.shapes(shape, scale), dtype, *PACKAGES, on=terms.device
    )
    exact = terms.engine("float32", executor="eager")
    wanted = frames_of(exact, kinema_sampler(exact, noise, terms.steps, scale)())
    found: dict[str, Sampler] = {}
    left_out = []
    with tempfile.TemporaryDirectory() as room:
        for name in (runner for runner in RUNNERS if runner not in leave_out):
            reason = missing(name, terms.device, dtype)
            if reason is None:
                folder = exports or Path(room)
                found[name] = sampler(name, terms, dtype, noise, scale, folder)
            else:
                left_out.append(rows.skipped(about, name, reason))
        quality = {
            name: beside(frames_of(exact, sample()), wanted) for name, sample in found.items()
        }
        seconds = interleave(found, repeats)
    return [*rows.timed(about, seconds, BASE, quality), *left_out]
