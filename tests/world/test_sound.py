"""Sound: one tone at every contact, at its exact sample, over an ambience that repeats by frame."""

import numpy as np
import pytest

from kinema.world.scene import BACKGROUNDS, FPS, MOTIONS, NUM_FRAMES, SHAPES, sample_scene
from kinema.world.sound import (
    PITCH,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    ambience,
    contact_tone,
    render_sound,
)


def scene_with(seed: int = 0, **given):
    return sample_scene(np.random.default_rng(seed), **given)


def spectrum(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    power = np.abs(np.fft.rfft(wave)) ** 2
    return np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE), power


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("num_frames", [1, 17, NUM_FRAMES])
def test_sound_lasts_as_long_as_the_picture_and_never_clips(motion, num_frames):
    for seed in range(5):
        wave = render_sound(scene_with(seed, motion=motion), num_frames)
        assert wave.shape == (num_frames * SAMPLE_RATE // FPS,) and wave.dtype == np.float32
        assert np.abs(wave).max() < 1


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "bounce"])
def test_nothing_but_a_bounce_is_heard_over_the_ambience(motion):
    scene = scene_with(motion=motion)
    assert np.array_equal(render_sound(scene), np.tile(ambience(scene.background), NUM_FRAMES))


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_ambience_is_quiet_and_has_no_seam(background):
    wave = ambience(background)
    assert wave.shape == (SAMPLES_PER_FRAME,)
    assert 0.005 < np.sqrt(np.mean(wave**2)) < 0.03
    inside = np.abs(np.diff(wave)).max()
    assert abs(wave[0] - wave[-1]) <= inside * (1 + 1e-5)


def test_ambiences_lie_in_bands_of_their_own():
    centres = []
    for background in BACKGROUNDS:
        frequencies, power = spectrum(ambience(background))
        centres.append(float(frequencies @ power / power.sum()))
    gaps = np.diff(np.log2(np.sort(centres)))
    assert gaps.min() > 0.5  # half an octave at least


@pytest.mark.parametrize("shape", SHAPES)
def test_pitch_tells_the_shape(shape):
    frequencies, power = spectrum(contact_tone(shape))
    # a decay of 50 ms broadens the line to about 6 Hz
    assert frequencies[power.argmax()] == pytest.approx(PITCH[shape], abs=8)


def test_tones_start_at_their_contacts_and_die_away_before_the_next():
    for seed in range(20):
        scene = scene_with(seed, motion="bounce")
        object_alone = render_sound(scene) - np.tile(ambience(scene.background), NUM_FRAMES)
        times = scene.contacts() * SAMPLES_PER_FRAME
        loud = np.flatnonzero(np.abs(object_alone) > 1e-3)
        # the attack of 2 ms passes a thousandth within 10 samples
        assert 0 <= loud[0] - times[0] < 12
        for time, end in zip(times, [*times[1:], np.inf], strict=True):
            inside = loud[(loud >= round(time)) & (loud < round(min(end, 1e9)))]
            assert 0 <= inside[0] - time < 12 and inside[-1] - time < 0.35 * SAMPLE_RATE
