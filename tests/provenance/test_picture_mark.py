"""The invisible mark of a picture: what it carries, hides, and survives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kinema.benchmarks.mark_clips import at_rate, clip, cropped, middle_half, x264
from kinema.runtime.errors import UsageError
from kinema.runtime.provenance import code, picture_mark
from kinema.runtime.provenance.payload import payload_of
from kinema.runtime.provenance.picture_mark import DEFAULT_KEY, PictureMark, read
from kinema.world import render, scene

PAYLOAD = 0xC0FFEE42
HEIGHT, WIDTH, FRAMES = 480, 854, 24


def marked(frames, payload=PAYLOAD, key=DEFAULT_KEY):
    mark = PictureMark(payload, key, *frames[0].shape[:2])
    return [mark.apply(frame, i) for i, frame in enumerate(frames)]


def mean_square(frames, others):
    return np.mean(
        [np.square(a.astype(float) - b).mean() for a, b in zip(frames, others, strict=True)]
    )


@pytest.fixture(scope="module")
def natural():
    return clip("natural", FRAMES, HEIGHT, WIDTH, seed=0)


@pytest.fixture(scope="module")
def natural_marked(natural):
    return marked(natural)


# ---- payload and code ----------------------------------------------------------------------------


def test_a_payload_follows_from_request_and_weights_in_any_order():
    request = {"prompt": "ein Hund läuft", "seed": 3, "height": 64}
    payload = payload_of(request, "ab12")
    assert payload == 0x0405A2DB  # of the JSON's SHA-256, taken with sha256sum
    assert payload == payload_of(dict(reversed(request.items())), "ab12")
    changed = [payload_of({**request, "seed": 4}, "ab12"), payload_of(request, "ab13")]
    assert len({payload, *changed}) == 3
    with pytest.raises(UsageError, match="JSON"):
        payload_of({"image": object()}, "ab12")


@pytest.mark.parametrize("payload", [0, 1, PAYLOAD, 2**32 - 1])
def test_every_payload_comes_back(payload):
    bits = code.encode(payload)
    assert bits.shape == (code.CHANNEL_BITS,)
    assert code.decode(2.0 * bits - 1) == (payload, pytest.approx(1), 1)


def test_a_payload_of_more_bits_is_refused():
    with pytest.raises(UsageError, match="4294967296"):
        code.encode(2**32)


def test_a_bit_of_the_message_moves_ten_of_the_channel_and_four_errors_are_corrected():
    rng = np.random.default_rng(0)
    single = code._convolve(np.eye(code.MESSAGE_BITS, dtype=np.int8)[0])
    assert single.sum() == 10
    for _ in range(20):
        payload = int(rng.integers(2**32))
        soft = 2.0 * code.encode(payload) - 1
        soft[rng.choice(code.CHANNEL_BITS, 4, replace=False)] *= -1
        assert code.decode(soft)[0] == payload


def test_the_viterbi_search_finds_the_word_that_agrees_most():
    """No message a bit or two away from what is found agrees more."""
    soft = np.random.default_rng(1).normal(size=code.CHANNEL_BITS)
    soft += 2.0 * code.encode(PAYLOAD) - 1
    found = code._viterbi(soft)

    def agreement(message):
        return (2.0 * code._convolve(message) - 1) @ soft

    flips = np.eye(code.MESSAGE_BITS, dtype=np.int8)
    others = [agreement(found ^ a ^ b * (a != b).any()) for a in flips for b in flips]
    assert agreement(found) >= max(others)


def test_chance_covers_what_noise_scores():
    """At the limits that it calls 5 % and 1 %, noise passes no more often: 3 spreads of slack."""
    rng = np.random.default_rng(2)
    count = 1000
    scores = np.array([code.decode(rng.normal(size=code.CHANNEL_BITS))[1] for _ in range(count)])
    for part in (0.05, 0.01):
        called = [code.probability_of_chance(s) * 2.0**code.CHECK_BITS for s in scores]
        passed = np.sum(np.array(called) <= part)
        assert passed <= count * part + 3 * math.sqrt(count * part)


# ---- the mark ------------------------------------------------------------------------------------


def test_a_mark_is_read_back_and_told_from_chance(natural_marked):
    found = read(natural_marked)
    assert found.payload == PAYLOAD
    assert found.bit_confidence == 1
    assert found.chance < 1e-9 and found.score > 0.9


def test_without_a_mark_or_with_another_key_nothing_is_found(natural, natural_marked):
    assert read(natural) is None
    assert read(natural_marked, b"another key") is None
    assert read([]) is None


@pytest.mark.parametrize("kind", ["world", "natural", "rough", "smooth"])
def test_a_mark_keeps_42_db_and_is_the_same_in_all_channels(kind):
    frames = clip(kind, 2, HEIGHT, WIDTH, seed=1)
    with_mark = marked(frames)
    assert 0 < mean_square(frames, with_mark) <= 255**2 / 10**4.2
    added = with_mark[0].astype(int) - frames[0]
    inside = np.all((frames[0] > 3) & (frames[0] < 252), axis=-1)
    assert np.all(added[inside] == added[inside][:, :1])


def test_the_bound_of_42_db_holds_for_noise_too():
    frames = [np.random.default_rng(0).integers(0, 256, (96, 170, 3), np.uint8)]
    assert mean_square(frames, marked(frames)) <= 255**2 / 10**4.2


def test_black_and_white_do_not_wrap():
    for level in (0, 1, 254, 255):
        frames = [np.full((HEIGHT, WIDTH, 3), level, np.uint8)]
        assert np.abs(marked(frames)[0].astype(int) - level).max() == 1  # flat: the least strength


def test_flat_places_get_less_than_textured_ones():
    samples = np.full((20, 40), 120)
    samples[:, 20:] = np.random.default_rng(0).integers(0, 255, (20, 20))
    strengths = picture_mark.strengths(samples)
    assert np.all(strengths[:, :10] == 1)
    assert strengths[:, 10:].mean() > 2


def test_a_frame_is_left_alone_and_its_index_does_not_matter(natural):
    frame = natural[0].copy()
    mark = PictureMark(PAYLOAD, DEFAULT_KEY, HEIGHT, WIDTH)
    assert np.array_equal(mark.apply(frame, 0), mark.apply(frame, 7))
    assert np.array_equal(frame, natural[0])


ATTACKS = {
    "x264 crf 28": lambda f: x264(f, 28),
    "360p": lambda f: x264(f, 23, 360, 640),
    "half of it at 15 fps": lambda f: x264(at_rate(middle_half(f), 15), 23),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_mark_survives(attack):
    """A clip of the world a second long; longer ones, and harder pictures, are in the benchmark."""
    frames = clip("world", FRAMES, HEIGHT, WIDTH, seed=2)
    found = read(ATTACKS[attack](marked(frames)))
    assert found.payload == PAYLOAD
    assert found.bit_confidence >= 0.97


def test_a_crop_destroys_the_mark_as_the_docs_say(natural_marked):
    assert read(cropped(natural_marked[:4], 0.05)) is None


@pytest.mark.parametrize("size", [(854, 480), (400, 400), (64, 64), (96, 170), (241, 323)])
def test_other_sizes_carry_a_mark_too(size):
    frames = clip("smooth", 4, *size, seed=3)
    assert read(marked(frames)).payload == PAYLOAD


def test_the_embedded_models_clips_carry_a_mark_through_their_own_file():
    frames = list(render.render(scene.sample_scene(np.random.default_rng(4))))
    assert read(x264(marked(frames), 12)).payload == PAYLOAD


def test_frames_that_carry_nothing_do_not_drown_those_that_do():
    rng, word = np.random.default_rng(0), 2.0 * code.encode(PAYLOAD) - 1
    frames = rng.standard_normal((96, code.CHANNEL_BITS))
    frames[::12] += 1.3 * word
    assert np.mean((frames.sum(0) > 0) == (word > 0)) < 0.9
    assert np.mean((picture_mark.combined(frames) > 0) == (word > 0)) > 0.97


def test_noise_stays_as_likely_in_every_direction():
    """Weighing turns with the axes, so it cannot lean towards code words."""
    rng = np.random.default_rng(1)
    frames = rng.standard_normal((24, code.CHANNEL_BITS)) * rng.uniform(0.1, 3, (24, 1))
    turn, _ = np.linalg.qr(rng.standard_normal((code.CHANNEL_BITS, code.CHANNEL_BITS)))
    turned = picture_mark.combined(frames @ turn)
    assert np.allclose(turned, picture_mark.combined(frames) @ turn, rtol=1e-6, atol=1e-9)


def test_no_frames_and_empty_ones_say_nothing():
    for count in (0, 3):
        assert not picture_mark.combined(np.zeros((count, code.CHANNEL_BITS))).any()


def test_averages_weigh_every_pixel_once():
    for cells, pixels in ((90, 720), (160, 854), (320, 200), (3, 7)):
        weights = picture_mark.averages(cells, pixels)
        assert np.allclose(weights.sum(axis=1), 1, atol=1e-5)
        assert np.allclose(weights.sum(axis=0), cells / pixels, atol=1e-5)


def test_a_frame_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="64x16"):
        PictureMark(PAYLOAD, DEFAULT_KEY, 16, 64)
    mark = PictureMark(PAYLOAD, DEFAULT_KEY, 64, 64)
    with pytest.raises(UsageError, match="float32"):
        mark.apply(np.zeros((64, 64, 3), np.float32), 0)
