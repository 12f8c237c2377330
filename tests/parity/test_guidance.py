"""Guidance against the reference's guiders, step by step."""

from __future__ import annotations

import pytest
import torch

from kinema.runtime.planning.plan import Track
from kinema.runtime.requests.guidance_options import Guidance
from kinema.runtime.sampling import schedule
from kinema.runtime.sampling.guidance import Branches, guide

guiders = pytest.importorskip("diffusers.guiders")

STEPS = 10
# Both sides do the same few operations in fp32; sums may be taken in another order.
TOLERANCE = 1e-6
INTERVALS = [(0.0, 1.0), (0.2, 0.8), (0.15, 0.55)]


def positive(latents, step):
    return torch.tanh(latents.roll(1, dims=-1)) + 0.1 * step


def negative(latents, step):
    return torch.sin(3 * latents) - 0.2 * step


def check(guider, scale, guidance):
    table = schedule.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}, STEPS)
    track = Track("all", 0, 4, guidance.scales(scale, table))
    predict = guide(Branches(None, positive, negative), [track], guidance)
    latents = torch.randn(2, 3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    for step in range(STEPS):
        guider.set_state(step, STEPS, table.timesteps[step])
        wanted = guider.forward(positive(latents, step), negative(latents, step)).pred
        found = predict(latents, step)
        assert (found - wanted).abs().max() <= TOLERANCE * positive(latents, step).abs().max()


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [1.0, 2.0, 6.0])
def test_classifier_free_guidance(scale, rescale, interval):
    start, stop = interval
    guider = guiders.ClassifierFreeGuidance(scale, rescale, start=start, stop=stop)
    check(guider, scale, Guidance(rescale=rescale, interval=interval))


@pytest.mark.parametrize("interval", INTERVALS)
@pytest.mark.parametrize(("zero_init_steps", "rescale"), [(0, 0.0), (1, 0.0), (3, 0.0), (0, 0.7)])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_zero_star(scale, zero_init_steps, rescale, interval):
    """Zero init and rescale together are left out: the reference rescales zeros to NaN."""
    start, stop = interval
    guider = guiders.ClassifierFreeZeroStarGuidance(
        scale, zero_init_steps, rescale, start=start, stop=stop
    )
    check(guider, scale, Guidance(rescale, interval, True, zero_init_steps))
