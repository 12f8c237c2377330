"""Sound as latent rows: the codec keeps contacts where they are, rows are rearranged exactly."""

import numpy as np
import pytest
import torch

from kinema.runtime import opening
from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.vaes.audio import STRIP_ROWS, KinemaSound, SoundConfig
from kinema.runtime.vaes.geometry import GROUP
from kinema.world.scene import BACKGROUNDS, Scene
from kinema.world.sound import SAMPLES_PER_FRAME, render_sound

FRAMES = 13


def clip(motion: str, background: str = "grass") -> np.ndarray:
    bounce = {"period": 5.3, "first_contact": 2.4, "height": 20.0} if motion == "bounce" else {}
    return render_sound(
        Scene("ball", "red", motion, background, 10.0, (32.0, 50.0), **bounce), FRAMES
    )


@pytest.fixture(scope="module")
def codec():
    """A codec that keeps every component of one bouncing clip."""
    codec = KinemaSound(SoundConfig(components=FRAMES - 1, scale=20.0))
    frames = codec.features(torch.from_numpy(clip("bounce")), FRAMES)
    codec.mean.copy_(frames.mean(0))
    basis = torch.linalg.svd(frames - codec.mean, full_matrices=False)[2]
    codec.basis.copy_(basis[: FRAMES - 1])
    return codec


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_hold_the_codes_exactly(codec, batch):
    codes = torch.randn(batch, FRAMES, codec.config.components)
    rows = codec.to_rows(codes)
    assert rows.shape == (batch, 16, 1 + (FRAMES - 1) // 4, STRIP_ROWS, 2 * GROUP)
    assert torch.equal(codec.from_rows(rows), codes)


def test_rows_tell_where_their_tokens_lie(codec):
    """No two tokens of a clip have the same given values, and no code is touched by them."""
    mask, values = codec.given(9)
    codes = torch.randn(1, 33, codec.config.components)
    rows = codec.to_rows(codes)[0]
    assert torch.equal(rows[mask], values[mask])
    assert torch.equal(codec.from_rows(rows[None]), codes)
    tokens = values.unflatten(-1, (GROUP, 2)).permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1)
    assert len(tokens.unique(dim=0)) == 9 * GROUP


def test_a_frame_owns_one_token(codec):
    """Frame 6 is the second of the third latent frame: columns 2 and 3, nothing else."""
    codes = torch.zeros(1, FRAMES, codec.config.components)
    codes[0, 6] = 1.0
    mask, _ = codec.given(4)
    touched = codec.to_rows(codes)[0].masked_fill(mask, 0).abs().sum((0, 2))
    assert touched[2, 2:4].min() > 0
    touched[2, 2:4] = 0
    assert touched.sum() == 0


def test_contacts_are_heard_where_they_were(codec):
    wave = torch.from_numpy(clip("bounce"))
    heard = codec.decode(codec.encode(wave, FRAMES))
    assert heard.shape == wave.shape
    assert heard.abs().max() <= 1

    def loud(x):
        return x.view(FRAMES, SAMPLES_PER_FRAME).square().mean(1).sqrt()

    contact_frames = [2, 7]  # of contacts at 2.4 and 7.7
    quiet_frames = [0, 5, 10]
    assert loud(heard)[contact_frames].min() > 4 * loud(heard)[quiet_frames].max()
    # Griffin-Lim keeps magnitudes, not phases: the level of a loud frame is kept within 3 dB.
    ratio = loud(heard)[contact_frames] / loud(wave)[contact_frames]
    assert ((ratio > 0.7) & (ratio < 1.4)).all()


def test_another_frame_rate_keeps_contacts_in_step(codec):
    """At twice the rate frame i still begins at i / FRAMES of the clip."""
    codes = codec.encode(torch.from_numpy(clip("bounce")), FRAMES)
    for num_samples in (FRAMES * SAMPLES_PER_FRAME // 2, FRAMES * 1333):
        heard = codec.decode(codes, num_samples)
        assert heard.shape == (num_samples,)
        per_frame = num_samples // FRAMES
        loud = heard[: FRAMES * per_frame].view(FRAMES, per_frame).square().mean(1)
        assert sorted(loud.topk(2).indices.tolist()) == [2, 7]


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_ambience_has_no_burst_at_its_ends(background):
    """The shipped codec's spectrogram sees a reflection at the ends, which must not be heard."""
    wave = torch.from_numpy(clip("still", background))
    codec = opening.open_component(open_checkpoint(), "audio", torch.device("cpu"), torch.float32)
    heard = codec.decode(codec.encode(wave, FRAMES)).abs()
    assert max(heard[:800].max(), heard[-800:].max()) < 1.5 * heard[800:-800].max()


def test_the_same_codes_make_the_same_wave(codec):
    codes = codec.encode(torch.from_numpy(clip("bounce")), FRAMES)
    assert torch.equal(codec.decode(codes), codec.decode(codes))
