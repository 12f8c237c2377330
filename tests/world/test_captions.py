"""Captions: every scene in words the tokenizer knows, and prompts that training never saw."""

import re

import numpy as np
import pytest

from kinema.world.captions import (
    BACKGROUND_PHRASES,
    COLOR_WORDS,
    MOTION_PHRASES,
    SHAPE_WORDS,
    SIZE_WORDS,
    held_out,
    heldout_prompts,
    sample_caption,
    vocabulary,
    words,
)
from kinema.world.scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES, sample_scene

MAX_WORDS = 24
KNOWN = {word for group in vocabulary().values() for word in group}


def captions(count: int, **options):
    rng = np.random.default_rng(0)
    for _ in range(count):
        scene = sample_scene(rng)
        yield scene, sample_caption(rng, scene, **options)


def says(text: str, phrase: str) -> bool:
    return re.search(rf"\b{phrase}\b", text) is not None


def last_words(phrases: dict, name: str) -> list[str]:
    """The held-out phrase, unless a trained phrase contains it."""
    *trained, last = phrases[name]
    flat = [t for entry in trained for t in ([entry] if isinstance(entry, str) else entry)]
    last = [last] if isinstance(last, str) else list(last)
    return [phrase for phrase in last if not any(says(text, phrase) for text in flat)]


def test_every_name_has_words():
    assert set(SHAPE_WORDS) == set(SHAPES) and set(COLOR_WORDS) == set(COLORS)
    assert set(MOTION_PHRASES) == set(MOTIONS) and set(BACKGROUND_PHRASES) == set(BACKGROUNDS)
    for name, options in (SHAPE_WORDS | COLOR_WORDS).items():
        assert options[0] == name
    everything = [w for options in (SHAPE_WORDS | COLOR_WORDS).values() for w in options]
    assert len(everything) == len(set(everything))


def test_captions_are_short_lower_case_and_of_known_words():
    for _, text in captions(2000):
        assert text == " ".join(words(text)), text
        assert 3 <= len(words(text)) <= MAX_WORDS
        assert set(words(text)) <= KNOWN


def test_captions_say_what_the_scene_shows():
    for scene, text in captions(1000, drop=0.0):
        assert any(says(text, word) for word in COLOR_WORDS[scene.color]), text
        assert any(says(text, word) for word in SHAPE_WORDS[scene.shape]), text
        assert any(says(text, phrase) for phrase in BACKGROUND_PHRASES[scene.background]), text
        assert any(says(text, p) for pair in MOTION_PHRASES[scene.motion] for p in pair), text
        for size, limit in (("small", scene.radius < 10), ("big", scene.radius > 11.5)):
            assert limit or not any(says(text, word) for word in SIZE_WORDS[size]), text


def test_each_attribute_is_left_out_now_and_then():
    texts = list(captions(3000))
    silent = {
        "color": np.mean([not any(says(t, w) for w in COLOR_WORDS[s.color]) for s, t in texts]),
        "shape": np.mean([says(t, "shape") for _, t in texts]),
        "background": np.mean(
            [not any(says(t, p) for p in BACKGROUND_PHRASES[s.background]) for s, t in texts]
        ),
    }
    # rates .06, .03 and .12; 4 standard errors of a rate over 3000 are .024 at most
    assert silent["color"] == pytest.approx(0.06, abs=0.02)
    assert silent["shape"] == pytest.approx(0.03, abs=0.015)
    assert silent["background"] == pytest.approx(0.12, abs=0.025)


def test_training_never_says_the_held_out_phrases():
    texts = [text for _, text in captions(4000)]
    for phrases in (MOTION_PHRASES, BACKGROUND_PHRASES):
        for name in phrases:
            for phrase in last_words(phrases, name):
                assert not any(says(text, phrase) for text in texts), phrase


def test_held_out_combinations_cover_every_value_evenly():
    held = [(c, s, m) for c in COLORS for s in SHAPES for m in MOTIONS if held_out(c, s, m)]
    assert len(held) == 18
    for position, values in enumerate((COLORS, SHAPES, MOTIONS)):
        counts = [sum(triple[position] == value for triple in held) for value in values]
        assert set(counts) == {18 // len(values)}


def test_held_out_prompts_are_the_same_every_time_and_held_out():
    prompts = heldout_prompts(200)
    assert prompts == heldout_prompts(200) and prompts[:12] == heldout_prompts(12)
    assert len(prompts) == 200
    for text, asked in prompts:
        assert held_out(asked.color, asked.shape, asked.motion), text
        assert asked.background in BACKGROUNDS
        assert set(words(text)) <= KNOWN and len(words(text)) <= MAX_WORDS
        assert any(says(text, word) for word in COLOR_WORDS[asked.color])
        assert any(says(text, word) for word in SHAPE_WORDS[asked.shape])


def test_held_out_prompts_have_every_motion_in_trained_and_in_held_out_phrases():
    prompts = heldout_prompts(200)
    for motion in MOTIONS:
        unseen = last_words(MOTION_PHRASES, motion)
        own = [
            any(says(text, p) for p in unseen) for text, asked in prompts if asked.motion == motion
        ]
        assert len(own) >= 33
        assert 0.4 <= np.mean(own) <= 0.6, motion
