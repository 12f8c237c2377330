"""Settings asked for by hand: whole pipelines as lean as they go, against the reference."""

from __future__ import annotations

import numpy as np
import pytest

import kinema
from kinema.runtime.requests.conditions import Condition

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from .checkpoints import VAE_16X, Variant, build, picture, reference_run, request

SIZE = {"num_frames": 5, "num_inference_steps": 3, "guidance_scale": 3.0}
FACE = picture(40, 30, 61)
VARIANTS = {
    "i2v": Variant(
        "WanImageToVideoPipeline",
        {"in_channels": 12},
        {**SIZE, "height": 48, "width": 80},
        index={"boundary_ratio": 0.8},
        experts=2,
        pictures=("image",),
    ),
    "ti2v": Variant(
        "WanImageToVideoPipeline",
        {"in_channels": 6, "out_channels": 6},
        {**SIZE, "height": 96, "width": 64},
        index={"expand_timesteps": True},
        vae=VAE_16X,
        pictures=("image",),
    ),
    "vace": Variant(
        "WanVACEPipeline",
        {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 2 * 4 + 64},
        {**SIZE, "height": 48, "width": 80},
        model="WanVACETransformer3DModel",
        given={"reference_images": [FACE]},
        conditions=(Condition(FACE, frame=None),),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_tiles_and_two_passes_only_round(name, tmp_path):
    """Within the bounds that whole frames and one batch keep to (`test_pipelines.py`)."""
    variant = VARIANTS[name]
    pipeline = build(variant)
    pipeline.save_pretrained(tmp_path, safe_serialization=True)
    latents, frames = reference_run(pipeline, variant)
    engine = kinema.load(tmp_path, "cpu", tile=(32, 32), two_passes=True)
    session = engine.session(request(variant))
    assert session.plan.setting.tile == (32, 32)
    for step, wanted in zip(session, latents, strict=True):
        # Frames that hold are put in at the end, and at each step of the reference.
        found = step.latents[:, :, -1:]
        assert (found - wanted[:, :, -1:]).abs().max() < 1e-4 * wanted.square().mean().sqrt()
    difference = session.finish().frames - np.round(frames.astype(np.float64) * 255)
    assert 10 * np.log10(255**2 / max(np.square(difference).mean(), 1e-12)) >= 60
