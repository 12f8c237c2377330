"""The command line: what it prints, where, and the exit code; with an engine that only pretends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kinema
from kinema.runtime.checkpoints import checkpoint as checkpoints
from kinema.runtime.cli import run
from kinema.runtime.media.mp4 import count_samples
from kinema.runtime.media.video import Video, read_info
from kinema.runtime.planning.plan import resolve
from kinema.runtime.sessions.progress import Progress

PROMPT = "a red ball bounces"


class PretendEngine:
    """Answers as an engine does, with grey frames; or fails as one would."""

    failure: BaseException | None = None
    warnings: tuple[str, ...] = ()
    failing_step: int | None = None

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def session(self, request):
        return PretendSession(self, request)

    def resume(self, file):
        return PretendSession(self, kinema.Request(Path(file).read_text()))


class PretendSession:
    """A session of it; it is saved as its prompt."""

    def __init__(self, engine, request):
        self.engine, self.request = engine, request

    def save(self, file):
        file.write_text(self.request.prompt)

    def record(self, path, progress, overwrite, provenance=None):
        engine, request = self.engine, self.request
        if engine.failure is not None:
            raise engine.failure
        plan = resolve(request, engine.checkpoint)
        for stage, total in (("encode", 1), ("denoise", plan.num_inference_steps), ("decode", 1)):
            for index in range(1, total + 1):
                progress(Progress(stage, index, total))
                if engine.failing_step == index and stage == "denoise":
                    raise KeyboardInterrupt
        report = {
            "request": request.as_dict(),
            "plan": plan.as_dict(),
            "seconds": {"denoise": 0.5},
            "warnings": list(engine.warnings),
        }
        frames = np.full((plan.num_frames, plan.height, plan.width, 3), 128, np.uint8)
        audio = np.zeros((count_samples(plan.num_frames, 16_000, plan.fps), 1), np.float32)
        video = Video(frames, plan.fps, audio, 16_000, report=report)
        video.save(path, overwrite, provenance)
        return video


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, checkpoint_folder: Path, tmp_path: Path):
    """The pretend engine behind `kinema.load`, on a checkpoint without weights, in a new folder."""
    monkeypatch.setattr(checkpoints, "EMBEDDED_FOLDER", checkpoint_folder)
    loaded = {}

    def load(source=None, device=None, dtype=None, **run_by):
        loaded.update(source=source, device=device, dtype=dtype, **run_by)
        return PretendEngine(checkpoints.open_checkpoint(source))

    monkeypatch.setitem(vars(kinema), "load", load)
    monkeypatch.setattr(PretendEngine, "failure", None)
    monkeypatch.setattr(PretendEngine, "warnings", ())
    monkeypatch.setattr(PretendEngine, "failing_step", None)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return loaded


def refused(capsys: pytest.CaptureFixture, argv: list[str], code: int, leaves: list[str]) -> str:
    """The one line that a command line is refused with, the same with --json."""
    assert run(argv) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("kinema: ") and err.count("\n") == 1, (out, err)
    assert run([*argv, "--json"]) == code
    out, json_err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert json_err == "" and set(error) == {"type", "message"}
    assert error["message"] == err.removeprefix("kinema: ").rstrip("\n")
    assert os.listdir() == leaves
    return error["message"]


def test_generate_writes_a_file_and_says_so(engine, capsys):
    assert run(["generate", PROMPT, "-o", "a.mp4"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("a.mp4: 33 frames 64x64, 4.125 s, with sound, made in ")
    assert out.count("\n") == 1
    assert err == ("kinema: 33 frames 64x64 at 8 fps (4.125 s), 16 steps, seed 0, model embedded\n")
    assert read_info("a.mp4")["request"]["prompt"] == PROMPT
    assert engine["source"].name == "embedded"


def test_every_option_reaches_the_request(engine, capsys, checkpoint_folder):
    options = "--size 48x96 --fps 12 --seed 7 --steps 3 --guidance-scale 2.5 --seconds 2"
    names = ["--model", str(checkpoint_folder), "--device", "cuda:1", "--dtype", "bfloat16"]
    names += ["--negative-prompt", "blue", "--json"]
    assert run(["generate", PROMPT, "-o", "a.mp4", *options.split(), *names]) == 0
    out, _ = capsys.readouterr()
    result = json.loads(out)
    assert set(result) == {"path", "request", "plan", "report"}
    assert result["path"] == "a.mp4"
    assert result["request"] == {
        "prompt": PROMPT,
        "negative_prompt": "blue",
        "seconds": 2,
        "height": 96,
        "width": 48,
        "fps": 12,
        "seed": 7,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "output": "video",
    }
    assert (result["plan"]["num_frames"], result["plan"]["num_samples"]) == (25, 33_333)
    assert result["report"]["seconds"] == {"denoise": 0.5}
    assert (engine["device"], engine["dtype"]) == ("cuda:1", "bfloat16")


def test_warnings_are_said_but_do_not_refuse(engine, capsys, monkeypatch):
    monkeypatch.setattr(PretendEngine, "warnings", ("the model has never seen: zebra",))
    assert run(["generate", "a zebra", "-o", "a.mp4"]) == 0
    assert "kinema: warning: the model has never seen: zebra\n" in capsys.readouterr().err
    assert run(["generate", "a zebra", "-o", "b.mp4", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["report"]["warnings"] == ["the model has never seen: zebra"]


def test_a_run_is_saved_gone_on_with_and_cleaned_up(engine, capsys, monkeypatch):
    monkeypatch.setattr(PretendEngine, "failing_step", 5)
    assert run(["generate", PROMPT, "-o", "a.mp4", "--save-every", "2"]) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "kinema: stopped; --resume a.kinema goes on from the last save"
    assert os.listdir() == ["a.kinema"]
    monkeypatch.setattr(PretendEngine, "failing_step", None)
    assert run(["generate", "--resume", "a.kinema", "-o", "a.mp4", "--save-every", "2"]) == 0
    assert os.listdir() == ["a.mp4"] and read_info("a.mp4")["request"]["prompt"] == PROMPT
    assert run(["generate", PROMPT, "-o", "b.mp4", "--keep-latents"]) == 0
    assert sorted(os.listdir()) == ["a.mp4", "b.kinema", "b.mp4"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([PROMPT, "-o", "a.mp4", "--resume", "a.kinema"], ["has its own prompt"]),
        ([PROMPT, "-o", "a.mp4", "--save-every", "0"], ["--save-every is 0", "1 step or more"]),
        (["-o", "a.mp4"], ["prompt is empty"]),
        (["", "-o", "a.mp4"], ["prompt is empty"]),
        (["x" * 100_000, "-o", "a.mp4"], ["100,000", "32,000"]),
        ([PROMPT], ["'-o'", "--help"]),
        ([PROMPT, "-o", "a.avi"], ["a.avi", ".mp4"]),
        ([PROMPT, "-o", "no/a.mp4"], ["'no'", "does not exist"]),
        ([PROMPT, "-o", "a.mp4", "--seconds", "2", "--num-frames", "5"], ["give one"]),
        ([PROMPT, "-o", "a.mp4", "--seconds", "1000"], ["1000", "65 frames"]),
        ([PROMPT, "-o", "a.mp4", "--num-frames", "-4"], ["-4", "nearest 1"]),
        ([PROMPT, "-o", "a.mp4", "--size", "65x64"], ["65", "nearest 64"]),
        ([PROMPT, "-o", "a.mp4", "--size", "64x-9"], ["-9", "nearest 32"]),
        ([PROMPT, "-o", "a.mp4", "--size", "big"], ["'big'", "64x64"]),
        ([PROMPT, "-o", "a.mp4", "--fps", "0"], ["fps", "nearest 1"]),
        ([PROMPT, "-o", "a.mp4", "--steps", "many"], ["--steps", "integer"]),
        ([PROMPT, "-o", "a.mp4", "--model", "sora"], ["sora", "embedded"]),
        ([PROMPT, "-o", "a.mp4", "--sedd", "3"], ["--sedd", "--seed"]),
    ],
)
def test_usage_errors_are_one_line_and_come_before_work(engine, capsys, arguments, words):
    message = refused(capsys, ["generate", *arguments], 2, leaves=[])
    assert all(word in message for word in words), message
    assert engine == {}


def test_an_existing_file_is_replaced_only_with_force(engine, capsys):
    Path("a.mp4").write_text("precious")
    command = ["generate", PROMPT, "-o", "a.mp4"]
    assert "exists" in refused(capsys, command, 2, leaves=["a.mp4"])
    assert Path("a.mp4").read_text() == "precious"
    assert run([*command, "--force"]) == 0
    assert read_info("a.mp4")["media"]["num_frames"] == 33


def test_a_damaged_checkpoint_fails_by_name(engine, capsys, checkpoint_folder):
    (checkpoint_folder / "model_index.json").write_text("{")
    message = refused(capsys, ["generate", PROMPT, "-o", "a.mp4"], 1, leaves=[])
    assert "model_index.json" in message


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (kinema.KinemaError("weights are damaged: x.safetensors"), 1, "damaged: x.safetensors"),
        (RuntimeError("shapes\ndiffer"), 1, "unexpected RuntimeError: shapes differ"),
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
    ],
)
def test_a_failing_engine_is_one_line(engine, capsys, monkeypatch, failure, code, message):
    monkeypatch.setattr(PretendEngine, "failure", failure)
    command = ["generate", PROMPT, "-o", "a.mp4"]
    assert run(command) == code
    out, err = capsys.readouterr()
    assert out == "" and message in err.splitlines()[-1] and "Traceback" not in err
    assert run([*command, "--json"]) == code
    assert message in json.loads(capsys.readouterr().out)["error"]["message"]
    assert os.listdir() == []


def test_debug_shows_the_traceback(engine, capsys, monkeypatch):
    monkeypatch.setattr(PretendEngine, "failure", RuntimeError("shapes differ"))
    assert run(["generate", PROMPT, "-o", "a.mp4", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_models_lists_what_opens_and_the_vocabulary(engine, capsys):
    assert run(["models"]) == 0
    out = capsys.readouterr().out
    for word in ("embedded", "FOLDER", "ORG/NAME", "ball, square", "red, blue", PROMPT):
        assert word in out
    assert run(["models", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert listing[0]["name"] == "embedded"
    assert listing[0]["words"]["colours"] == ["red", "blue"]


def test_info_shows_the_report(engine, capsys):
    run(["generate", PROMPT, "-o", "a.mp4", "--seed", "7"])
    capsys.readouterr()
    assert run(["info", "a.mp4"]) == 0
    out = capsys.readouterr().out
    for line in (f"  prompt: {PROMPT}", "  seed: 7", "  denoise: 0.5", "  num_samples: 66000"):
        assert line in out.splitlines()
    assert run(["info", "a.mp4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["seed"] == 7
    assert "no such file: 'b.mp4'" in refused(capsys, ["info", "b.mp4"], 2, leaves=["a.mp4"])


def test_no_arguments_show_the_help(capsys):
    assert run([]) == 0
    assert "generate" in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"kinema {kinema.__version__}\n"


def test_help_imports_nothing_heavy():
    heavy = "torch numpy av transformers diffusers huggingface_hub rich.progress"
    code = (
        "import sys; from kinema.runtime.cli import run; run(['--help']);"
        f"print('heavy:', [name for name in {heavy!r}.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_help_answers_at_once():
    resource = pytest.importorskip("resource")

    def processor_seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = processor_seconds()
    subprocess.run([sys.executable, "-m", "kinema", "--help"], check=True, capture_output=True)
    assert processor_seconds() - before < 0.5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_writing_leaves_no_part_of_a_file(tmp_path, number, code):
    script = f"""
import os, signal, sys
import numpy as np
from kinema.runtime import cli
from kinema.runtime.media.mp4 import write_mp4

def frames():
    for _ in range(100):  # more than the encoder holds back
        yield np.zeros((64, 64, 3), np.uint8)
    assert [name for name in os.listdir() if name.endswith(".part")]
    os.kill(os.getpid(), {int(number)})
    yield np.zeros((64, 64, 3), np.uint8)

@cli.app.command()
def write():
    write_mp4("a.mp4", frames(), 8)

sys.argv = ["kinema", "write"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_the_front_door_is_lazy_and_complete():
    assert set(kinema.__all__) <= set(dir(kinema))
    assert kinema.Request.__module__ == "kinema.runtime.requests.request"
    with pytest.raises(AttributeError, match="nothing"):
        _ = kinema.nothing


@pytest.mark.parametrize("command", [[], ["keys"], ["api-keys"], ["bench"]], ids=" ".join)
def test_the_summaries_of_commands_fit_into_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    summaries = lines[lines.index("Commands:") + 1 :]
    assert summaries and all(line.endswith(".") and line[-3:] != "..." for line in summaries)
    assert max(map(len, lines)) <= 80
