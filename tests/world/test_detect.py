"""The detector finds everything on rendered truth and nothing where there is nothing."""

import dataclasses
import json
import types

import numpy as np
import pytest

from kinema.world import evaluate
from kinema.world.captions import Attributes, heldout_prompts
from kinema.world.detect import STRICT_IOU, Detection, detect
from kinema.world.onsets import find_onsets, synchrony
from kinema.world.render import render
from kinema.world.scene import (
    BACKGROUNDS,
    CAMERAS,
    COLORS,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    SIZE,
    Scene,
    sample_scene,
)
from kinema.world.sound import SAMPLE_RATE, SAMPLES_PER_FRAME, render_sound

CLIPS = len(MOTIONS) * len(BACKGROUNDS) * len(CAMERAS)
# A contact this close to the last frame moves the object by less than two pixels in it.
UNSEEN = 0.2


def make_scene(i: int) -> Scene:
    """Every motion with every camera on every background; every colour and shape in turn."""
    return sample_scene(
        np.random.default_rng(i),
        motion=MOTIONS[i % 6],
        camera=CAMERAS[i // 6 % 4],
        background=BACKGROUNDS[i // 24 % 5],
        color=list(COLORS)[(i + i // 6) % 6],
        shape=SHAPES[(i // 2 + i // 6) % 3],
    )


@pytest.fixture(scope="module")
def truth() -> list[tuple[Scene, Detection]]:
    """120 scenes and what the detector makes of their pictures and sound."""
    scenes = [make_scene(i) for i in range(CLIPS)]
    return [(s, detect(render(s), render_sound(s), SAMPLE_RATE)) for s in scenes]


# ---- truth ----


def test_the_truth_holds_every_value(truth):
    scenes = [scene for scene, _ in truth]
    assert {(s.motion, s.camera, s.background) for s in scenes} == {
        (m, c, b) for m in MOTIONS for c in CAMERAS for b in BACKGROUNDS
    }
    assert {(s.color, s.shape) for s in scenes} == {(c, s) for c in COLORS for s in SHAPES}


@pytest.mark.parametrize("name", ["color", "shape", "motion", "background", "camera"])
def test_every_attribute_is_found(truth, name):
    wrong = [(getattr(d, name), s) for s, d in truth if getattr(d, name) != getattr(s, name)]
    assert not wrong


def test_outlines_are_strict_in_every_frame_and_for_one_shape_only(truth):
    for scene, found in truth:
        assert found.strict(scene.shape) and found.outline_iou > 0.9
        assert (found.frame_iou[scene.shape] > STRICT_IOU).all()
        for other in set(SHAPES) - {scene.shape}:
            assert not found.strict(other)
            assert found.iou[other] < found.outline_iou - 0.08


def test_centres_and_areas_are_the_objects(truth):
    unit = {"ball": np.pi, "square": 1.8**2, "triangle": 2.0}
    for scene, found in truth:
        if scene.camera == "zoom in":
            continue
        lower = scene.radius / 3 if scene.shape == "triangle" else 0.0  # than the centre
        middle = scene.centres() + np.array([0, lower])
        assert np.abs(found.centres - middle).max() < 0.35
        assert np.abs(found.areas / (unit[scene.shape] * scene.radius**2) - 1).max() < 0.06


def test_contacts_are_found_and_none_invented(truth):
    for scene, found in truth:
        contacts = scene.contacts()
        seen = contacts[contacts <= NUM_FRAMES - 1 - UNSEEN]
        assert len(seen) <= len(found.contacts) <= len(contacts)
        assert np.abs(found.contacts - contacts[: len(found.contacts)]).max(initial=0) < 0.15


def test_onsets_are_found_within_half_a_frame_and_none_invented(truth):
    for scene, found in truth:
        assert len(found.onsets) == len(scene.contacts())
        assert np.abs(found.onsets - scene.contacts()).max(initial=0) < 1 / 16


def test_truth_is_in_step_and_shuffled_truth_is_not(truth):
    bounces = [found for scene, found in truth if scene.motion == "bounce"]
    rates = synchrony([d.contacts for d in bounces], [d.onsets for d in bounces])
    assert rates["recall"] == 1 and rates["precision"] > 0.95
    # by chance: about 3 onsets of 2 frames each in 33 frames
    assert 0.1 < rates["shuffled_recall"] < 0.35


def test_a_soft_and_noisy_picture_is_still_read():
    rng = np.random.default_rng(0)
    for i in range(0, CLIPS, 5):
        scene = make_scene(i)
        soft = render(scene).astype(np.float32)
        for axis in (1, 2):
            for _ in range(2):
                edge = [(1, 1) if a == axis else (0, 0) for a in range(4)]
                wide = np.moveaxis(np.pad(soft, edge, mode="edge"), axis, 0)
                soft = np.moveaxis((wide[:-2] + 2 * wide[1:-1] + wide[2:]) / 4, 0, axis)
        noisy = np.clip(soft + rng.normal(0, 5, soft.shape), 0, 255).astype(np.uint8)
        found = detect(noisy)
        for name in ("color", "shape", "motion", "background", "camera"):
            assert getattr(found, name) == getattr(scene, name), (name, scene)
        assert found.strict(scene.shape)


# ---- what is not there ----


def bounce(seed: int = 1, **given) -> Scene:
    return sample_scene(np.random.default_rng(seed), motion="bounce", **given)


@pytest.mark.parametrize("motion", [m for m in MOTIONS if m != "still"])
def test_a_scrambled_track_is_no_motion(motion):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        clip = render(sample_scene(rng, motion=motion))
        found = detect(clip[rng.permutation(NUM_FRAMES)])
        assert found.motion == "other" and found.contacts.size == 0


def test_a_short_or_slanted_move_is_no_motion():
    scene = Scene("ball", "red", "right", "grass", 10.0, (20.0, 30.0), travel=9.0)
    assert detect(render(scene)).motion == "other"
    right = np.arange(NUM_FRAMES) * 28 // (NUM_FRAMES - 1)
    still = render(
        dataclasses.replace(scene, motion="still", start=(15.0, 15.0), background="night")
    )
    sky = np.zeros_like(still)
    for t, step in enumerate(right):
        sky[t, step:, step:] = still[t, : SIZE - step, : SIZE - step]
    assert detect(sky).motion == "other"


def test_one_bounce_that_never_returns_is_no_bounce():
    scene = dataclasses.replace(bounce(), period=60.0, first_contact=40.0)
    assert detect(render(scene)).motion != "bounce"


def test_doubled_objects_are_not_strict():
    left = Scene("square", "blue", "still", "snow", 10.0, (15.0, 30.0))
    pair = np.minimum(render(left), render(dataclasses.replace(left, start=(46.0, 30.0))))
    found = detect(pair)
    assert found.color == "blue" and not found.strict("square")
    assert found.iou["square"] < 0.6


def test_a_broken_object_is_not_strict():
    scene = Scene("ball", "green", "still", "night", 12.0, (31.0, 31.0))
    clip = render(scene)
    clip[:, 27:36] = clip[:, :9]
    assert not detect(clip).strict("ball")


def test_an_object_that_fades_for_some_frames_lowers_the_share_of_strict_ones():
    clip = render(Scene("triangle", "cyan", "still", "brick", 11.0, (31.0, 31.0)))
    clip[10:20] = clip[0, :2].mean((0, 1)).astype(np.uint8)
    found = detect(clip)
    assert (found.frame_iou["triangle"] > STRICT_IOU).sum() == 23
    assert not found.strict("triangle") and np.isnan(found.centres[10:20]).all()
    assert found.motion == "still"


def test_noise_and_empty_pictures_show_nothing():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (9, SIZE, SIZE, 3), dtype=np.uint8)
    assert not any(detect(noise).strict(shape) for shape in SHAPES)
    for value in (0, 128, 255):
        found = detect(np.full((5, SIZE, SIZE, 3), value, np.uint8))
        assert (found.color, found.shape, found.motion) == ("none", "none", "other")
        assert found.outline_iou == 0 and not found.strict("ball") and found.contacts.size == 0


@pytest.mark.parametrize("num_frames", [1, 2, 5, 17])
def test_short_clips_are_read(num_frames):
    scene = Scene("square", "purple", "still", "sand", 11.0, (30.0, 30.0))
    found = detect(render(scene, num_frames), render_sound(scene, num_frames), SAMPLE_RATE)
    for name in ("color", "shape", "motion", "background", "camera"):
        assert getattr(found, name) == getattr(scene, name)
    assert found.onsets.size == 0


def test_other_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"\(5, 32, 32, 3\)"):
        detect(np.zeros((5, 32, 32, 3), np.uint8))


# ---- sound ----


@pytest.mark.parametrize("length", [0, 1, 300, 33 * SAMPLES_PER_FRAME])
def test_silence_and_steady_noise_have_no_onsets(length):
    noise = np.random.default_rng(0).normal(0, 0.02, length).astype(np.float32)
    assert find_onsets(np.zeros(length, np.float32), SAMPLE_RATE).size == 0
    assert find_onsets(noise, SAMPLE_RATE).size == 0


def test_channels_are_mixed_and_other_rates_read():
    scene = bounce()
    wave = render_sound(scene)
    stereo = np.stack([wave, wave], axis=1)
    assert np.array_equal(find_onsets(stereo, SAMPLE_RATE), find_onsets(wave, SAMPLE_RATE))
    time = np.arange(0, len(wave) - 1, SAMPLE_RATE / 44100)
    resampled = np.interp(time, np.arange(len(wave)), wave)
    assert np.allclose(find_onsets(resampled, 44100), scene.contacts(), atol=1 / 16)


def test_a_wavering_tail_does_not_sound_again():
    scene = bounce(3)
    time = np.arange(NUM_FRAMES * SAMPLES_PER_FRAME) / SAMPLE_RATE
    wave = render_sound(scene) * (1 + 0.3 * np.sin(2 * np.pi * 23 * time))
    assert len(find_onsets(wave, SAMPLE_RATE)) == len(scene.contacts())


def test_synchrony_counts_by_hand():
    contacts = [np.array([5.0, 15.0]), np.array([10.0])]
    onsets = [np.array([5.4, 20.0, 25.0]), np.array([14.5])]
    rates = synchrony(contacts, onsets, tolerance=1.0)
    assert rates["recall"] == pytest.approx(1 / 3) and rates["precision"] == pytest.approx(1 / 4)
    assert rates["shuffled_recall"] == pytest.approx(1 / 3)
    assert rates["shuffled_precision"] == pytest.approx(1 / 4)
    nothing = synchrony([], [])
    assert set(nothing.values()) == {None}
    assert synchrony(contacts[:1], onsets[:1])["shuffled_recall"] is None


# ---- tables ----


def test_score_puts_truth_at_one_and_wrong_words_below():
    scenes = [make_scene(i) for i in range(12)]
    found = [detect(render(s), render_sound(s), SAMPLE_RATE) for s in scenes]
    right = [Attributes(s.color, s.shape, s.motion, s.background) for s in scenes]
    right[1] = dataclasses.replace(right[1], color=None, shape=None)
    table = evaluate.score(right, found)
    for name in (*evaluate.ATTRIBUTES, "all_four", "strict_shape"):
        assert table[name] == 1, name
        assert all(rates[name] in (1, None) for rates in table["by_motion"].values())
    assert table["clips"] == 12 and table["sound"]["recall"] == 1
    assert table["sound"]["false_onsets_per_silent_clip"] == 0
    wrong = [dataclasses.replace(a, color="red", background="sand") for a in right]
    table = evaluate.score(wrong, found)
    assert table["color"] == pytest.approx(np.mean([s.color == "red" for s in scenes]))
    assert table["background"] == table["all_four"] == 0 and table["motion"] == 1


def test_evaluate_writes_tables_and_pictures(tmp_path, monkeypatch, capsys):
    """The command, with rendered truth in the place of a model."""
    prompts = heldout_prompts(13)

    def generate(prompt: str, seed: int, **fields):
        assert fields == {"num_inference_steps": 4, "guidance_scale": None}
        asked = dataclasses.asdict(prompts[seed - 100][1])
        assert prompts[seed - 100][0] == prompt
        scene = sample_scene(np.random.default_rng(seed), **asked)
        track = {"name": "picture", "guidance_scale": 3.0, "shift": 1.0}
        plan = dict(num_frames=33, height=64, width=64, fps=8, num_inference_steps=4, seed=seed)
        return types.SimpleNamespace(
            frames=render(scene),
            audio=render_sound(scene)[:, None],
            sample_rate=SAMPLE_RATE,
            fps=8,
            report={
                "plan": plan | {"device": "cpu", "dtype": "float32", "tracks": [track]},
                "model": {"name": "truth", "weights": "0" * 64},
                "versions": {"kinema": "0"},
            },
        )

    engine = types.SimpleNamespace(generate=generate)
    monkeypatch.setattr("kinema.load", lambda source: engine, raising=False)
    command = f"--prompts 13 --seed 100 --steps 4 --out {tmp_path}/t/table --sheet {tmp_path}/sheet"
    evaluate.main(command.split())
    result = json.loads((tmp_path / "t" / "table.json").read_text())
    assert result["table"]["all_four"] == 1 and len(result["rows"]) == 13
    assert result["provenance"]["seeds"] == [100, 112]
    text = (tmp_path / "t" / "table.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert "| bounce | 2 | 1.000 |" in text
    from PIL import Image

    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] >= 9 * 128 and sheet.size[1] >= 12 * 128
    with Image.open(tmp_path / "sheet-bounce.png") as figure:
        assert figure.size[0] > 33 * 40
