"""The invisible mark of sound: what it carries, hides, and survives."""

from __future__ import annotations

import numpy as np
import pytest

from kinema.benchmarks.mark_clips import aac, noise_sound, other_rate, tone_sound, trimmed
from kinema.runtime.errors import UsageError
from kinema.runtime.provenance import sound_mark
from kinema.runtime.provenance.sound_mark import DEFAULT_KEY, SoundMark, read

PAYLOAD, RATE = 0xC0FFEE42, 48_000
SOUNDS = {"noise": noise_sound, "tones": tone_sound}


def marked(samples, rate=RATE, key=DEFAULT_KEY):
    return SoundMark(PAYLOAD, key, rate).apply(samples)


@pytest.fixture(scope="module", params=SOUNDS)
def heard(request):
    return SOUNDS[request.param](4, RATE, 0)[0]


def test_a_mark_is_read_back_and_told_from_chance(heard):
    found = read(marked(heard), RATE)
    assert found.payload == PAYLOAD
    assert found.bit_confidence >= 0.99 and found.chance < 1e-9


def test_without_a_mark_or_with_another_key_nothing_is_found(heard):
    assert read(heard, RATE) is None
    assert read(marked(heard), RATE, b"another key") is None


ATTACKS = {
    "AAC": lambda s: aac(s, 128_000),
    "44.1 kHz and AAC": lambda s: aac(other_rate(s, 44_100), 128_000),
    "half of it and AAC": lambda s: aac(trimmed(s), 128_000),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_mark_survives(heard, attack):
    found = read(*ATTACKS[attack]((marked(heard), RATE)))
    assert found.payload == PAYLOAD


def test_a_mark_stays_in_its_band_and_well_under_the_sound(heard):
    added = marked(heard)[:, 0] - heard[:, 0]
    power = np.abs(np.fft.rfft(added)) ** 2
    hertz = np.fft.rfftfreq(len(added), 1 / RATE)
    slack = 2 * sound_mark.RATE / sound_mark.WINDOW  # windows widen an edge by their main lobe
    inside = (hertz > sound_mark.LOWEST_HZ - slack) & (hertz < sound_mark.HIGHEST_HZ + slack)
    assert power[~inside].sum() < 1e-2 * power.sum()
    assert 10 * np.log10(np.sum(heard**2) / np.sum(added**2)) > 20


def test_a_mark_is_louder_where_the_sound_is():
    samples = noise_sound(4, RATE, 1)[0]
    samples[: 2 * RATE] *= 0.1
    added = marked(samples) - samples
    quiet, loud = (np.std(part) for part in (added[: 2 * RATE], added[2 * RATE :]))
    assert loud / quiet == pytest.approx(10, rel=0.25)


def test_silence_stays_silent_and_says_nothing():
    silence = np.zeros((RATE, 2), np.float32)
    assert np.array_equal(marked(silence), silence)
    assert read(silence, RATE) is None
    assert read(silence[:0], RATE) is None
    assert marked(silence[:0]).shape == (0, 2)


def test_both_channels_carry_the_mark():
    left, right = (noise_sound(4, RATE, seed)[0] for seed in (2, 3))
    stereo = marked(np.concatenate([left, right], axis=1))
    for samples in (stereo, stereo[:, :1], stereo[:, 1:]):
        assert read(samples, RATE).payload == PAYLOAD


@pytest.mark.parametrize("rate", [12_000, 16_000, 44_100, 96_000])
def test_other_rates_carry_a_mark_too(rate):
    samples = noise_sound(4, rate, 4)[0]
    assert read(marked(samples, rate), rate).payload == PAYLOAD


def test_windows_add_up_to_what_they_were_cut_from():
    samples = np.random.default_rng(0).normal(size=5000)
    back = sound_mark.from_spectra(sound_mark.spectra(samples), len(samples))
    assert np.allclose(back, samples)


def test_a_rate_or_shape_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="8000"):
        SoundMark(PAYLOAD, DEFAULT_KEY, 8000)
    assert read(np.zeros((10, 1), np.float32), 8000) is None  # nothing could be there
    with pytest.raises(UsageError, match="float64"):
        marked(np.zeros((10, 1)))
