"""Requests and plans: defaults, derived numbers, and what each refusal says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from kinema.runtime.checkpoint import Checkpoint, open_checkpoint
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.plan import Plan, resolve
from kinema.runtime.presets import PIPELINES, Presets
from kinema.runtime.request import MAX_PROMPT_CHARS, Request


@pytest.fixture
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return open_checkpoint(checkpoint_folder)


def plan_of(checkpoint: Checkpoint, **fields) -> Plan:
    return resolve(Request(prompt="a red ball", **fields), checkpoint)


def test_a_request_left_alone_takes_the_presets(checkpoint: Checkpoint):
    plan = plan_of(checkpoint)
    assert (plan.num_frames, plan.height, plan.width, plan.fps) == (33, 64, 64, 8)
    assert (plan.num_inference_steps, plan.guidance_scale, plan.seed) == (16, 3.0, 0)
    assert plan.seconds == 33 / 8
    assert plan.latent_shape == (16, 9, 8 + 2, 8)
    assert plan.num_samples == 66_000


def test_a_request_overrides_the_presets(checkpoint: Checkpoint):
    plan = plan_of(checkpoint, num_frames=17, height=48, width=128, fps=16, seed=7)
    assert plan.latent_shape == (16, 5, 6 + 2, 16)
    assert (plan.seconds, plan.num_samples, plan.seed) == (17 / 16, 17_000, 7)


def test_picture_and_sound_are_tracks_that_share_the_rows(checkpoint: Checkpoint):
    picture, sound = plan_of(checkpoint, guidance_scale=5.0).tracks
    assert (picture.rows, picture.guidance_scale, picture.shift) == (slice(0, 8), 5.0, 1.0)
    assert (sound.rows, sound.guidance_scale, sound.shift) == (slice(8, 10), 1.0, 4.0)


def test_a_model_without_sound_has_one_track(checkpoint_folder: Path):
    checkpoint = Checkpoint("wan", checkpoint_folder, {"_class_name": "WanPipeline"})
    plan = plan_of(checkpoint)
    assert plan.latent_shape == (16, 21, 60, 104)
    assert [track.name for track in plan.tracks] == ["picture"]
    assert (plan.sample_rate, plan.num_samples) == (None, 0)


@pytest.mark.parametrize("fps", [1, 7, 8, 24, 23.976, 30])
@pytest.mark.parametrize("seconds", [0.01, 0.7, 1, 2.1, 65 / 30])
def test_seconds_take_the_fewest_frames_that_last_so_long(
    checkpoint: Checkpoint, fps: float, seconds: float
):
    if seconds * fps > 65:
        pytest.skip("longer than the model makes")
    count = plan_of(checkpoint, seconds=seconds, fps=fps).num_frames
    assert count % 4 == 1
    assert count / fps >= seconds - 1e-6
    assert count == 1 or (count - 4) / fps < seconds


def test_the_shortest_request_of_the_videos_api_fits(checkpoint: Checkpoint):
    assert plan_of(checkpoint, seconds=4).num_frames == 33


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_frames": 18}, ["18", "1 + 4k", "65", "nearest 17"]),
        ({"num_frames": 20}, ["nearest 21"]),
        ({"num_frames": -5}, ["-5", "nearest 1"]),
        ({"num_frames": 0}, ["nearest 1"]),
        ({"num_frames": 10**30}, ["nearest 65"]),
        ({"seconds": 100}, ["100", "8.125", "65 frames"]),
        ({"seconds": 1e300}, ["65 frames"]),
        ({"height": 63}, ["height", "63", "16", "32", "128", "nearest 64"]),
        ({"width": -64}, ["width", "-64", "nearest 32"]),
        ({"width": 100_000}, ["nearest 128"]),
        ({"fps": 0}, ["fps", "0", "nearest 1"]),
        ({"fps": -8}, ["-8", "nearest 1"]),
        ({"fps": 1e9}, ["nearest 120"]),
        ({"num_inference_steps": 0}, ["num_inference_steps", "0", "nearest 1"]),
        ({"num_inference_steps": 5000}, ["1000"]),
    ],
)
def test_a_number_that_cannot_run_is_refused_with_the_nearest_that_does(
    checkpoint: Checkpoint, fields: dict, words: list[str]
):
    with pytest.raises(UsageError) as refusal:
        plan_of(checkpoint, **fields)
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 200


def test_a_model_of_one_size_says_so(checkpoint: Checkpoint):
    checkpoint.index["kinema"]["presets"].update(min_size=64, max_size=64)
    assert plan_of(checkpoint, height=64).height == 64
    with pytest.raises(UsageError, match="height is 80; this model makes 64 and nothing else"):
        plan_of(checkpoint, height=80)


@pytest.mark.parametrize("name", ["num_frames", "height", "width", "num_inference_steps"])
def test_the_nearest_that_works_does_work(checkpoint: Checkpoint, name: str):
    for value in (*range(-3, 140), 999, 1001):
        try:
            plan_of(checkpoint, **{name: value})
        except UsageError as refusal:
            nearest = int(str(refusal).rsplit("nearest ", 1)[1])
            plan_of(checkpoint, **{name: nearest})


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": " \n\t"}, "empty"),
        ({"prompt": None}, "NoneType"),
        ({"prompt": "a" * 100_000}, "100,000"),
        ({"negative_prompt": "a" * (MAX_PROMPT_CHARS + 1)}, "negative_prompt"),
        ({"seconds": 2, "num_frames": 17}, "one"),
        ({"seconds": -1}, "-1"),
        ({"seconds": math.inf}, "inf"),
        ({"seconds": "4"}, "'4'"),
        ({"num_frames": 17.0}, "17.0"),
        ({"num_frames": True}, "True"),
        ({"fps": math.nan}, "nan"),
        ({"seed": -1}, "-1"),
        ({"seed": 2**63}, str(2**63 - 1)),
        ({"seed": None}, "None"),
        ({"guidance_scale": 0.5}, "0.5"),
        ({"guidance_scale": -3}, "-3"),
        ({"guidance_scale": 10**400}, "finite"),
        ({"output": "gif"}, "latents"),
    ],
)
def test_what_no_model_could_run_is_refused_at_once(fields: dict, word: str):
    with pytest.raises(UsageError, match=word):
        Request(**{"prompt": "a red ball", **fields})


def test_numbers_of_numpy_become_plain_ones():
    request = Request("a", num_frames=np.int64(17), fps=np.float32(8), seed=np.int32(3))
    assert json.loads(json.dumps(request.as_dict())) == {
        "prompt": "a",
        "negative_prompt": "",
        "num_frames": 17,
        "fps": 8.0,
        "seed": 3,
        "output": "video",
    }


def test_a_request_is_made_again_from_its_dict():
    request = Request("a", seconds=2.5, height=64, guidance_scale=4)
    assert Request(**request.as_dict()) == request


def test_given_latents_must_have_the_planned_shape(checkpoint: Checkpoint):
    shape = (16, 9, 10, 8)
    for latents in (torch.zeros(shape), torch.zeros(1, *shape)):
        assert plan_of(checkpoint, latents=latents).latent_shape == shape
    with pytest.raises(UsageError, match=r"\(16, 9, 8, 8\).*\(16, 9, 10, 8\)"):
        plan_of(checkpoint, latents=torch.zeros(16, 9, 8, 8))


def test_a_plan_is_ready_for_json(checkpoint: Checkpoint):
    plan = json.loads(json.dumps(plan_of(checkpoint).as_dict()))
    assert plan["seconds"] == 4.125
    assert plan["tracks"][1]["name"] == "sound"
    assert plan["fps"] == 8 and isinstance(plan["fps"], int)


def test_presets_name_what_they_do_not_know(checkpoint_folder: Path):
    with pytest.raises(KinemaError, match="here: unknown preset 'frames'"):
        Presets.from_dict({"frames": 3}, "here")
    with pytest.raises(KinemaError, match=r"here: .*num_frames"):
        Presets.from_dict({"height": 3}, "here")
    with pytest.raises(KinemaError, match="here: preset height is '64'; a number"):
        Presets.from_dict({"height": "64"}, "here")
    values = {**vars(PIPELINES["WanPipeline"]), "sound": {"loudness": 11}}
    with pytest.raises(KinemaError, match="here, sound: unknown preset 'loudness'"):
        Presets.from_dict(values, "here")


def test_the_defaults_and_limits_of_every_pipeline_can_run(checkpoint_folder: Path):
    for name, presets in PIPELINES.items():
        checkpoint = Checkpoint(name, checkpoint_folder, {"_class_name": name})
        assert plan_of(checkpoint).num_frames == presets.num_frames
        longest = {"num_frames": presets.max_num_frames}
        assert plan_of(checkpoint, height=presets.min_size, width=presets.max_size, **longest)
