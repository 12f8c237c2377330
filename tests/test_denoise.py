"""The step: laws of tracks and guidance, and that nothing constant is computed in it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from kinema.runtime.errors import UsageError
from kinema.runtime.models.wan.config import WanConfig
from kinema.runtime.models.wan.transformer import WanTransformer
from kinema.runtime.planning.plan import Track
from kinema.runtime.sampling.denoise import denoise
from kinema.runtime.sampling.guidance import guide, is_guided
from kinema.runtime.sampling.tracks import schedule_tracks, timesteps_of

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}
BOTH = pytest.mark.parametrize("config", [EULER, UNIPC], ids=["euler", "unipc"])


def noise(rows=4, batch=1):
    return torch.randn(batch, 2, 3, rows, 5, generator=torch.manual_seed(0))


def flow(latents, step):
    """A denoiser that mixes columns but not rows."""
    return torch.tanh(latents.roll(1, dims=-1)) + 0.1 * step


def run(predict, latents, tracks, config, num_steps=6):
    tracks = schedule_tracks(tracks, config, num_steps)
    return list(denoise(guide(predict, tracks), latents, tracks))


@BOTH
def test_every_step_is_told(config):
    latents = noise()
    steps = run(flow, latents, [Track("all", 0, 4, 1.0)], config)
    assert [(step.index, step.total) for step in steps] == [(i, 6) for i in range(6)]
    sigmas = [step.sigma for step in steps]
    assert sigmas == sorted(sigmas, reverse=True) and sigmas[-1] == 0
    assert all(step.latents.shape == latents.shape for step in steps)
    assert torch.equal(latents, noise())  # what came in is untouched


@BOTH
def test_tracks_do_not_touch_each_other(config):
    """Where a denoiser treats rows apart, each track goes as if it were alone."""
    tracks = [Track("above", 0, 3, 1.0), Track("below", 3, 4, 1.0, shift=4.0)]
    together = run(flow, noise(), tracks, config)[-1].latents
    for track in tracks:
        rows = track.stop - track.start
        only = Track(track.name, 0, rows, 1.0, shift=track.shift)
        alone = run(flow, noise()[..., track.rows, :], [only], config)[-1].latents
        torch.testing.assert_close(together[..., track.rows, :], alone, rtol=0, atol=0)


@BOTH
def test_cutting_a_track_in_two_changes_nothing(config):
    whole = run(flow, noise(), [Track("all", 0, 4, 1.0)], config)[-1].latents
    halves = [Track("a", 0, 2, 1.0), Track("b", 2, 4, 1.0)]
    assert torch.equal(run(flow, noise(), halves, config)[-1].latents, whole)


def two_branches(latents, step):
    """A denoiser with a branch for the negative prompt, which predicts zero."""
    prediction = flow(latents, step)
    return torch.cat([prediction, torch.zeros_like(prediction)])


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_one_branch_runs(scale):
    """The denoiser itself, and so nothing but the prompt's branch."""
    tracks = schedule_tracks([Track("all", 0, 4, scale)], EULER, 6)
    assert not is_guided(tracks) and guide(flow, tracks) is flow


def test_guidance_is_by_track():
    """With a negative branch of zero a scale multiplies the flow; unguided rows are left as are."""
    tracks = schedule_tracks([Track("a", 0, 3, 2.5), Track("b", 3, 4, 1.0)], EULER, 2)
    latents = noise(batch=2)
    found = guide(two_branches, tracks)(latents, 1)
    wanted = flow(latents, 1)
    assert torch.equal(found[..., 3:, :], wanted[..., 3:, :])
    torch.testing.assert_close(found[..., :3, :], 2.5 * wanted[..., :3, :])
    assert is_guided(tracks) and not is_guided(tracks[1:])


def test_timesteps_by_row():
    same = schedule_tracks([Track("a", 0, 2, 1.0), Track("b", 2, 4, 3.0)], EULER, 5)
    assert timesteps_of(same).shape == (5,)
    apart = schedule_tracks([Track("a", 0, 3, 1.0), Track("b", 3, 4, 1.0, shift=4.0)], EULER, 5)
    rows = timesteps_of(apart)
    assert rows.shape == (5, 1, 4, 1)
    assert torch.equal(rows[:, 0, 0, 0], apart[0].schedule.timesteps)
    assert torch.equal(rows[:, 0, 3, 0], apart[1].schedule.timesteps)
    assert (rows[1:, 0, 3] > rows[1:, 0, 2]).all()  # a shift above 1 is decided later


def test_a_request_can_be_cancelled():
    calls = []
    steps = denoise(
        lambda latents, step: calls.append(step) or flow(latents, step),
        noise(),
        schedule_tracks([Track("all", 0, 4, 1.0)], EULER, 50),
    )
    next(steps), next(steps)
    steps.close()
    assert calls == [0, 1]


@pytest.mark.parametrize(
    "spans", [[(0, 3)], [(0, 5)], [(1, 4)], [(0, 2), (3, 4)], [(2, 4), (0, 2)]], ids=str
)
def test_tracks_that_do_not_cover_the_rows_are_refused(spans):
    with pytest.raises(UsageError, match="do not cover latent rows 0 to 4"):
        run(flow, noise(), [Track("t", *span, 1.0) for span in spans], EULER)


def test_nothing_constant_is_computed_in_the_step():
    """Text, timesteps and RoPE once a request; one forward a step, for both branches."""
    config = WanConfig(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=2,
        out_channels=2,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
    )
    model, calls = WanTransformer(config).eval(), Counter()
    watched = {
        "text": model.text_embedder,
        "time": model.time_embedder,
        "time_proj": model.time_proj,
        "text_kv": model.blocks[0].attn2.kv,
        "block": model.blocks[0],
        "model": model,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    tracks = schedule_tracks([Track("a", 0, 2, 3.0), Track("b", 2, 4, 1.0, shift=4.0)], EULER, 6)
    latents = torch.randn(1, 2, 3, 4, 4)
    predict = model.bind(
        latents.shape, timesteps_of(tracks), torch.randn(2, 3, 8), torch.tensor([9, 10])
    )
    for step in denoise(guide(predict, tracks), latents, tracks):
        assert step.latents.dtype == torch.float32 and not step.latents.requires_grad
    assert calls == {"text": 1, "time": 1, "time_proj": 1, "text_kv": 1, "block": 6, "model": 6}
