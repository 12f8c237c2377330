"""Requests and plans: defaults, derived numbers, and what each refusal says."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kinema.runtime.checkpoints.checkpoint import Checkpoint, open_checkpoint
from kinema.runtime.checkpoints.presets import Presets
from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.models.wan.presets import PIPELINES
from kinema.runtime.planning.plan import Plan, resolve
from kinema.runtime.requests.conditions import Condition
from kinema.runtime.requests.request import MAX_PROMPT_CHARS, Request

SQUARE = Image.new("RGB", (64, 64))


@pytest.fixture
def checkpoint(checkpoint_folder: Path) -> Checkpoint:
    return open_checkpoint(checkpoint_folder)


def plan_of(checkpoint: Checkpoint, **fields) -> Plan:
    return resolve(Request(prompt="a red ball", **fields), checkpoint)


def test_a_request_left_alone_takes_the_presets(checkpoint: Checkpoint):
    plan = plan_of(checkpoint)
    assert (plan.num_frames, plan.height, plan.width, plan.fps) == (33, 64, 64, 8)
    assert (plan.num_inference_steps, plan.guidance_scale, plan.seed) == (16, 3.0, 0)
    assert plan.duration == 33 / 8
    assert plan.latent_shape == (16, 9, 8 + 2, 8)
    assert plan.num_samples == 66_000


def test_a_request_overrides_the_presets(checkpoint: Checkpoint):
    plan = plan_of(checkpoint, num_frames=17, height=48, width=128, fps=16, seed=7)
    assert plan.latent_shape == (16, 5, 6 + 2, 16)
    assert (plan.duration, plan.num_samples, plan.seed) == (17 / 16, 17_000, 7)


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
        ({"guidance_scale_2": 0.5}, "guidance_scale_2 is 0.5"),
        ({"conditions": "ball.png"}, "list of Condition"),
        ({"solver": "rk4"}, "solver 'rk4' is not known; known: euler"),
        ({"sigmas": []}, "sigmas are empty"),
        ({"sigmas": 0.5}, "sigmas are 0.5"),
        ({"sigmas": [1.0, 1.0]}, "1 does not fit there"),
        ({"sigmas": [0.5, -0.1]}, "-0.1 does not fit there"),
        ({"sigmas": [1.5, 0.5]}, "1.5 does not fit there"),
        ({"sigmas": [0.5], "num_inference_steps": 1}, "give one"),
        ({"conditions": ["ball.png"]}, "a condition is str"),
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
    assert plan["duration"] == 4.125
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
        shown = {"image": SQUARE} if presets.conditions == "beside" else {}
        assert plan_of(checkpoint, **shown).num_frames == presets.num_frames
        longest = {"num_frames": presets.max_num_frames, **shown}
        assert plan_of(checkpoint, height=presets.min_size, width=presets.max_size, **longest)


VAE_8X = {"scale_factor_spatial": 8, "scale_factor_temporal": 4, "z_dim": 16}
VAE_16X = {"scale_factor_spatial": 16, "scale_factor_temporal": 4, "z_dim": 48}
SHOWN = {"image_dim": 1280, "added_kv_proj_dim": 5120}
PUBLISHED = {  # name: (pipeline, index, transformer, vae, what a bare request becomes)
    "2.1 T2V": ("WanPipeline", {}, {}, VAE_8X, (480, 832, 81, 16, 50, 5.0, None)),
    "2.2 T2V-A14B": (
        "WanPipeline",
        {"boundary_ratio": 0.875},
        {},
        VAE_8X,
        (720, 1280, 81, 16, 40, 4.0, 3.0),
    ),
    "2.2 TI2V-5B": (
        "WanPipeline",
        {"expand_timesteps": True},
        {},
        VAE_16X,
        (704, 1280, 121, 24, 50, 5.0, None),
    ),
    "2.1 I2V": ("WanImageToVideoPipeline", {}, SHOWN, VAE_8X, (624, 624, 81, 16, 50, 5.0, None)),
    "2.1 FLF2V": (
        "WanImageToVideoPipeline",
        {},
        {**SHOWN, "pos_embed_seq_len": 514},
        VAE_8X,
        (960, 960, 81, 16, 50, 5.5, None),
    ),
    "2.2 I2V-A14B": (
        "WanImageToVideoPipeline",
        {"boundary_ratio": 0.9},
        {},
        VAE_8X,
        (624, 624, 81, 16, 40, 3.5, 3.5),
    ),
    "2.1 VACE": ("WanVACEPipeline", {}, {}, VAE_8X, (480, 832, 81, 16, 50, 5.0, None)),
}


def published(folder: Path, name: str) -> Checkpoint:
    """A checkpoint of configs alone, as one of the published ones has them."""
    pipeline, index, transformer, vae, _ = PUBLISHED[name]
    configs = {"transformer": {"patch_size": [1, 2, 2], **transformer}, "vae": vae}
    for part, config in configs.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    parts = {part: ["diffusers", "Some"] for part in configs}
    parts["transformer_2" if "boundary_ratio" in index else "image_encoder"] = ["library", "Some"]
    return Checkpoint(name, folder, {"_class_name": pipeline, **index, **parts})


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_variant_has_its_own_defaults(tmp_path: Path, name: str):
    checkpoint = published(tmp_path, name)
    shown = {"image": SQUARE} if "I2V" in name and "TI2V" not in name else {}
    shown = {"image": SQUARE, "last_image": SQUARE} if "FLF2V" in name else shown
    plan = plan_of(checkpoint, **shown)
    found = (plan.height, plan.width, plan.num_frames, plan.fps)
    found += (plan.num_inference_steps, plan.guidance_scale, plan.guidance_scale_2)
    assert found == PUBLISHED[name][-1]
    stride = checkpoint.component("vae").config["scale_factor_spatial"]
    assert plan.latent_shape[2:] == (plan.height // stride, plan.width // stride)
    assert plan.latent_shape[0] == checkpoint.component("vae").config["z_dim"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", (960, 960)),
        ("wan_i2v_720p", (960, 960)),
        ("/models/Wan2.1-I2V-14B-720P/wan.safetensors", (960, 960)),
        ("/720p/models/Wan2.1-I2V-14B-480P", (624, 624)),
        ("Wan2.1-I2V-17200", (624, 624)),
    ],
)
def test_a_name_tells_the_area_where_configs_do_not(tmp_path: Path, name: str, size: tuple):
    checkpoint = replace(published(tmp_path, "2.1 I2V"), name=name)
    plan = plan_of(checkpoint, image=SQUARE)
    assert (plan.height, plan.width) == size


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("2.1 T2V", {"image": SQUARE}, ["text alone", "1 picture"]),
        ("2.1 T2V", {"guidance_scale_2": 3.0}, ["guidance_scale_2 is 3", "no second expert"]),
        ("2.2 TI2V-5B", {"height": 720}, ["multiple of 32", "nearest 704"]),
        ("2.2 TI2V-5B", {"last_image": SQUARE}, ["frame 120", "frame 0 (the first)"]),
        ("2.1 I2V", {}, ["none was given", "image=..."]),
        ("2.1 I2V", {"image": SQUARE, "last_image": SQUARE}, ["frame 80", "frame 0 (the first)"]),
        ("2.1 I2V", {"image": "no such.png"}, ["'no such.png' cannot be read"]),
        ("2.1 FLF2V", {"image": SQUARE}, ["second was not given", "last_image=..."]),
        ("2.1 FLF2V", {"image": SQUARE, "num_frames": 1}, ["second was not given"]),
        ("2.2 I2V-A14B", {"last_image": SQUARE}, ["none was given"]),
    ],
)
def test_what_a_variant_cannot_do_is_refused(tmp_path: Path, name, fields, words):
    with pytest.raises(UsageError) as refusal:
        plan_of(published(tmp_path, name), **fields)
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message and len(message) < 200


@pytest.mark.parametrize("name", ["2.1 I2V", "2.2 I2V-A14B"])
def test_a_variant_without_one_of_its_parts_is_refused(tmp_path: Path, name: str):
    checkpoint = published(tmp_path, name)
    for part in ("image_encoder", "transformer_2"):
        checkpoint.index[part] = [None, None]
    with pytest.raises(KinemaError, match=r"has (image_dim|boundary_ratio)=\S+, but no"):
        plan_of(checkpoint, image=SQUARE)


def test_the_second_expert_follows_the_first(tmp_path: Path):
    checkpoint = published(tmp_path, "2.2 T2V-A14B")
    for asked, wanted in [((5.0, None), (5.0, 5.0)), ((None, 2.0), (4.0, 2.0)), ((1, 3), (1, 3))]:
        plan = plan_of(checkpoint, guidance_scale=asked[0], guidance_scale_2=asked[1])
        assert (plan.guidance_scale, plan.guidance_scale_2) == wanted
    assert plan.boundary_ratio == 0.875


@pytest.mark.parametrize(("width", "height"), [(1920, 1080), (1080, 1920), (500, 500), (3000, 40)])
def test_a_video_has_the_shape_of_its_picture(tmp_path: Path, width: int, height: int):
    """At the model's own area, unless one side is at its limit; a size that is given stands."""
    checkpoint = published(tmp_path, "2.1 I2V")
    image = np.zeros((height, width, 3), np.uint8)
    plan = plan_of(checkpoint, image=image)
    assert plan.height % 16 == plan.width % 16 == 0
    assert 0.9 * 480 * 832 < plan.height * plan.width <= 480 * 832 or plan.width == 2048
    assert (plan.width > plan.height) == (width > height)
    plan = plan_of(checkpoint, image=image, width=320)
    assert (plan.height, plan.width) == (480, 320)


def test_references_come_before_the_video_and_do_not_shape_it(tmp_path: Path):
    face = Condition(np.zeros((9, 500, 3), np.uint8), frame=None)
    plan = plan_of(published(tmp_path, "2.1 VACE"), conditions=[face, face])
    assert (plan.height, plan.width, plan.num_frames) == (480, 832, 81)
    assert plan.num_references == 2 and plan.latent_shape == (16, 2 + 21, 60, 104)


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"num_frames": 80}, {"num_frames": 81}),
        ({"num_frames": 10_000}, {"num_frames": 481}),
        ({"height": 700, "width": 1000}, {"height": 704, "width": 992}),
        ({"height": 1, "width": 9000}, {"height": 16, "width": 2048}),
    ],
)
def test_what_does_not_fit_is_adjusted_when_asked(tmp_path: Path, asked, made):
    checkpoint = published(tmp_path, "2.1 T2V")
    with pytest.raises(UsageError, match="nearest"):
        plan_of(checkpoint, **asked)
    plan = plan_of(checkpoint, adjust=True, **asked)
    assert {name: getattr(plan, name) for name in made} == made


def test_a_request_with_pictures_is_described_and_saved():
    clip, masks = np.zeros((5, 6, 8, 3), np.uint8), [Image.new("L", (8, 6), i) for i in range(5)]
    conditions = [Condition(frames=clip, frame=4, mask=masks), Condition("face.png", frame=None)]
    request = Request("a", image=SQUARE, last_image="last.png", conditions=conditions)
    told = json.loads(json.dumps(request.as_dict()))
    assert (told["image"], told["last_image"]) == ("64x64", "last.png")
    assert told["conditions"][0]["frames"] == "an array (5, 6, 8, 3)"
    assert told["conditions"][0]["mask"] == ["8x6"] * 5
    assert told["conditions"][1] == {
        "frame": None,
        "strength": 1.0,
        "image": "face.png",
        "mask": 0.0,
    }
    assert [condition.frame for condition in request.shown] == [0, -1, 4, None]


def test_a_saved_request_keeps_its_pictures():
    noise = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    conditions = [
        Condition(frames=noise[:2], frame=1, mask=[np.eye(6, 8) > 0, np.eye(6, 8) < 1]),
        Condition(noise[2], frame=None, strength=0.5),
    ]
    request = Request("a", image=Image.fromarray(noise[0]), adjust=True, conditions=conditions)
    values, tensors = request.as_saved()
    again = Request.from_saved(json.loads(json.dumps(values)), tensors)
    assert again.shown == request.shown and again.adjust
    first, clip, face = again.shown
    assert np.array_equal(np.asarray(first.image), noise[0])
    assert np.array_equal(np.stack([np.asarray(frame) for frame in clip.frames]), noise[:2])
    assert [int(np.asarray(mask)[0, 0, 0]) for mask in clip.masks()] == [255, 0]
    assert np.array_equal(np.asarray(face.image), noise[2])
