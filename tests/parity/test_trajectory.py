"""Twenty guided steps from noise to latents, against the reference's transformer and scheduler.

Errors of single steps add up, and guidance multiplies them; 1e-3 of the latents' RMS is asked for
at every step, a few 1e-5 is usual.
"""

from __future__ import annotations

import pytest
import torch

from kinema.runtime.planning.plan import Track
from kinema.runtime.sampling.denoise import denoise
from kinema.runtime.sampling.guidance import guide, is_guided
from kinema.runtime.sampling.tracks import schedule_tracks, timesteps_of

diffusers = pytest.importorskip("diffusers")

TOLERANCE = 1e-3
STEPS = 20
SCHEDULERS = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "unipc": (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    ),
}


def draw(pair, rows=6):
    """Noise (1, 16, 3, rows, 4), and text (2, 512, text_dim): a prompt and a negative one."""
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(1, 16, 3, rows, 4, generator=generator)
    embeds = torch.zeros(2, 512, pair.text_dim)
    embeds[0, :7] = torch.randn(7, pair.text_dim, generator=generator)
    embeds[1, :1] = torch.randn(1, pair.text_dim, generator=generator)
    return noise, embeds, torch.tensor([505, 511])


def run(pair, noise, embeds, pads, tracks, name, options):
    """Latents after each step."""
    tracks = schedule_tracks(tracks, {"_class_name": name, **options}, STEPS)
    if not is_guided(tracks):
        embeds, pads = embeds[:1], pads[:1]
    predict = pair.native.bind(noise.shape, timesteps_of(tracks), embeds[:, :7], pads)
    return [step.latents for step in denoise(guide(predict, tracks), noise, tracks)]


@torch.no_grad()
def reference_run(pair, noise, embeds, scale, name, options):
    """The loop of the reference's pipeline."""
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(STEPS)
    latents, trajectory = noise, []
    for timestep in scheduler.timesteps:
        prediction = pair.reference(latents, timestep.expand(1), embeds[:1]).sample
        if scale > 1:
            negative = pair.reference(latents, timestep.expand(1), embeds[1:]).sample
            prediction = negative + scale * (prediction - negative)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        trajectory.append(latents)
    return trajectory


def check(found, wanted):
    assert len(found) == len(wanted) == STEPS
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() < TOLERANCE * theirs.square().mean().sqrt()


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_one_track(pair, solver, scale):
    if pair.trained and scale == 1:
        pytest.skip("the guided run holds it too")
    noise, embeds, pads = draw(pair)
    found = run(pair, noise, embeds, pads, [Track("picture", 0, 6, scale)], *SCHEDULERS[solver])
    check(found, reference_run(pair, noise, embeds, scale, *SCHEDULERS[solver]))


@torch.no_grad()
@pytest.mark.parametrize("solver", SCHEDULERS)
def test_two_tracks(pair, solver):
    """A strip of rows on a later schedule without guidance: the reference steps it with a second
    scheduler, and is told a timestep for each token."""
    if pair.trained and solver == "unipc":
        pytest.skip("one solver is enough for the slower model")
    name, options = SCHEDULERS[solver]
    noise, embeds, pads = draw(pair, rows=8)
    tracks = [Track("picture", 0, 6, 3.0), Track("sound", 6, 8, 1.0, shift=4.0)]
    found = run(pair, noise, embeds, pads, tracks, name, options)

    schedulers = [getattr(diffusers, name)(**options) for _ in tracks]
    for scheduler, track in zip(schedulers, tracks, strict=True):
        own = schedule_tracks([track], {"_class_name": name, **options}, STEPS)[0].schedule
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas, scheduler.timesteps = own.sigmas, own.timesteps
    latents, wanted = noise, []
    for times in zip(*(scheduler.timesteps for scheduler in schedulers), strict=True):
        tokens = torch.stack([times[0]] * 3 + [times[1]])[None, :, None].expand(3, -1, 2)
        tokens = tokens.reshape(1, -1)
        positive = pair.reference(latents, tokens, embeds[:1]).sample
        negative = pair.reference(latents, tokens, embeds[1:]).sample
        flows = [negative + 3 * (positive - negative), positive]
        parts = [
            scheduler.step(
                flow[..., t.rows, :], time, latents[..., t.rows, :].clone(), return_dict=False
            )[0]
            for scheduler, flow, time, t in zip(schedulers, flows, times, tracks, strict=True)
        ]
        latents = torch.cat(parts, dim=-2)
        wanted.append(latents)
    check(found, wanted)
