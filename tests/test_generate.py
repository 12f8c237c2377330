"""From a prompt to a file, on the embedded model: what the README promises."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import kinema
from kinema.runtime import cli
from kinema.runtime.checkpoints.checkpoint import EMBEDDED_FOLDER
from kinema.runtime.sampling.latents import initial_noise
from kinema.world.captions import heldout_prompts
from kinema.world.detect import detect

FEW = 4  # steps, where only the plumbing matters


@pytest.fixture(scope="module")
def engine():
    return kinema.load()


@pytest.fixture(scope="module")
def video(engine):
    return engine.generate("a red ball bounces on the grass", seed=3)


def test_a_video_has_frames_and_sound_of_the_right_length(video):
    assert video.frames.dtype == np.uint8
    assert video.frames.shape == (33, 64, 64, 3)
    assert video.fps == 8
    assert video.audio.dtype == np.float32
    assert video.audio.shape == (round(33 * video.sample_rate / 8), 1)
    assert np.isfinite(video.audio).all() and np.abs(video.audio).max() <= 1
    assert video.latents.shape == (1, 16, 9, 10, 8)


def test_the_report_says_what_was_done(video):
    report = video.report
    assert report["request"]["prompt"] == "a red ball bounces on the grass"
    assert report["plan"]["num_frames"] == 33
    assert report["plan"]["dtype"] == "float32"
    assert report["executor"] in ("eager", "packed")
    assert report["backends"]["attention"] == "torch"
    assert set(report["seconds"]) == {"load", "encode", "denoise", "decode"}
    assert report["model"]["name"] == "embedded" and len(report["model"]["weights"]) == 64
    json.dumps(report)


def test_same_seed_same_bits(engine):
    first, second = (
        engine.generate("a blue square moves left", seed=7, num_inference_steps=FEW)
        for _ in range(2)
    )
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.audio, second.audio)
    other = engine.generate("a blue square moves left", seed=8, num_inference_steps=FEW)
    assert not np.array_equal(first.frames, other.frames)


def test_given_noise_is_the_seeds_noise(engine):
    shape = engine.plan("a red ball").latent_shape
    seeded = engine.generate("a red ball", seed=5, num_inference_steps=FEW)
    given = engine.generate(
        "a red ball", latents=initial_noise(shape, 5), seed=99, num_inference_steps=FEW
    )
    assert torch.equal(seeded.latents, given.latents)


def test_noise_is_the_references():
    """diffusers draws (batch, channels, frames, height, width) with `randn_tensor` on the CPU."""
    from diffusers.utils.torch_utils import randn_tensor

    generator = torch.Generator("cpu").manual_seed(11)
    expected = randn_tensor((1, 16, 9, 10, 8), generator=generator, dtype=torch.float32)
    assert torch.equal(initial_noise((16, 9, 10, 8), 11), expected)


def test_stopping_at_latents_decodes_nothing(engine):
    video = engine.generate("a red ball", output="latents", num_inference_steps=FEW)
    assert video.frames is None and video.audio is None
    assert video.latents.shape == (1, 16, 9, 10, 8)
    with pytest.raises(kinema.UsageError, match="latents"):
        video.save("never.mp4")


def test_progress_counts_every_step(engine):
    seen = []
    engine.generate("a red ball", progress=seen.append, num_inference_steps=FEW)
    assert [p.index for p in seen if p.stage == "denoise"] == [1, 2, 3, 4]
    assert [p.index for p in seen if p.stage == "decode"] == [1, 5, 9, 13, 17, 21, 25, 29, 33]


@pytest.mark.parametrize(("seconds", "frames"), [(4, 33), (2, 17), (0.1, 1)])
def test_seconds_take_the_fewest_frames_that_last(engine, seconds, frames):
    assert engine.plan("a red ball", seconds=seconds).num_frames == frames
    video = engine.generate("a red ball", seconds=seconds, num_inference_steps=1)
    assert len(video.frames) == frames
    assert len(video.audio) == frames * 2000


def test_an_exception_in_progress_stops_the_work(engine):
    """How Ctrl-C and cancellation stop within a step."""
    seen = []

    def stop(progress):
        seen.append(progress)
        if progress.stage == "denoise" and progress.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate("a red ball", progress=stop, num_inference_steps=50)
    assert seen[-1].index == 2


def test_unknown_words_are_warned_of_by_name(engine):
    video = engine.generate("a red wombat moves left", num_inference_steps=1)
    assert video.report["warnings"] == ["the model has never seen: wombat"]


def test_what_was_asked_for_is_seen(engine):
    """One held-out prompt of each motion. With the committed rates (results/evaluate.json, 95 % or
    more an attribute) more than two misses in these 24 have a chance below 2 %."""
    misses = []
    for seed, (prompt, wanted) in enumerate(heldout_prompts(6)):
        video = engine.generate(prompt, seed=seed)
        found = detect(video.frames, video.audio, video.sample_rate)
        for name in ("color", "shape", "motion", "background"):
            if getattr(found, name) != getattr(wanted, name):
                misses.append(f"{prompt}: {name} {getattr(found, name)}")
    assert len(misses) <= 2, misses


def copy_embedded(folder):
    return shutil.copytree(EMBEDDED_FOLDER, folder / "model")


@pytest.mark.parametrize(
    "file",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "audio/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_weight_file_is_named(tmp_path, file, damage):
    model = copy_embedded(tmp_path)
    if damage == "missing":
        (model / file).unlink()
    else:
        data = (model / file).read_bytes()
        (model / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(kinema.KinemaError) as raised:
        kinema.load(model).generate("a red ball", num_inference_steps=1)
    message = str(raised.value)
    assert file.split("/")[0] in message and "\n" not in message


def run(*arguments, **options):
    command = [sys.executable, "-m", "kinema", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def test_the_command_writes_a_file_that_tells_of_itself(tmp_path):
    target = tmp_path / "ball.mp4"
    made = run("generate", "a red ball", "-o", str(target), "--steps", "2", "--json")
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert result["path"] == str(target) and target.is_file()
    told = run("info", str(target), "--json")
    assert json.loads(told.stdout)["request"] == result["request"]
    again = run("generate", "a red ball", "-o", str(target))
    assert again.returncode == 2 and "--force" in again.stderr
    assert again.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "-m", "kinema", "generate", "a red ball", "-o", "ball.mp4"]
    process = subprocess.Popen(
        [*command, "--steps", "1000"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    process.stderr.readline()  # the plan is announced just before the work starts
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


def test_a_backend_is_chosen_or_refused():
    engine = kinema.load(backends={"attention": "matmul"})
    video = engine.generate("a red ball bounces", num_inference_steps=1, output="latents")
    assert video.report["backends"]["attention"] == "matmul"
    with pytest.raises(kinema.UsageError, match="attention cannot use triton: Triton kernels run"):
        kinema.load(device="cpu", backends={"attention": "triton"}).generate("a red ball bounces")
    with pytest.raises(kinema.UsageError, match="attention has no backend 'fast'; it has flash3"):
        kinema.load(backends={"attention": "fast"}).generate("a red ball bounces")


def test_a_plan_says_what_is_needed_and_why(capsys):
    assert cli.run(["plan", "a red ball bounces", "--steps", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = kinema.load().plan("a red ball bounces", num_inference_steps=4)
    assert found["peak_memory_bytes"] == plan.peak_memory_bytes > 20e6
    assert plan.seconds > 0
    assert {choice.what for choice in plan.choices} == {
        "executor", "attention", "guidance", "tile", "offload"
    }  # fmt: skip
    assert {stage["stage"] for stage in found["stages"]} >= {"encode", "denoise", "decode"}
    assert cli.run(["plan", "a red ball bounces"]) == 0
    told = capsys.readouterr().out
    assert "should take" in told and "both branches run in one forward" in told
    assert cli.run(["plan", "a red ball bounces", "--num-frames", "34"]) == 2
    assert "nearest 33" in capsys.readouterr().err
