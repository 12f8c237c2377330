"""A profile of the embedded model: what its numbers promise, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kinema
from kinema.runtime.engine import Engine
from kinema.runtime.errors import UsageError
from kinema.runtime.media.video import read_info
from kinema.runtime.profiling import ceilings as ceilings_module
from kinema.runtime.profiling import report as reports
from kinema.runtime.profiling import what_if
from kinema.runtime.profiling.classes import GAPS, HIDDEN, PRODUCTS
from kinema.runtime.profiling.report import Profile, classes_of
from kinema.runtime.sessions.session import Session

PROMPT, STEPS, FRAMES = "a red ball bounces", 3, 5
FIELDS = {"num_inference_steps": STEPS, "num_frames": FRAMES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return kinema.load(device="cpu")


@pytest.fixture(scope="module")
def found(engine: Engine, folder: Path) -> Profile:
    """Of an engine that nothing was made with before."""
    sizes = ceilings_module.COPIES, ceilings_module.PRODUCTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setitem(sizes[0], "cpu", (1 << 16, 1 << 22))
        patch.setitem(sizes[1], "cpu", ((256, 512, 512),))
        return kinema.profile(PROMPT, engine, path=folder / "video.mp4", **FIELDS)


@pytest.fixture(scope="module")
def report(found: Profile) -> dict:
    return found.as_dict()


def test_every_moment_belongs_to_one_stage(report: dict) -> None:
    stages = {name: stage["seconds"] for name, stage in report["stages"].items()}
    assert sum(stages.values()) == pytest.approx(report["total_seconds"], rel=1e-6)
    assert min(stages.values()) >= 0
    made = {"load", "warm-up", "encode", "bind", "denoise", "guidance", "decode", "mark", "mux"}
    assert made | {"decode sound", "sign"} <= set(stages)
    assert stages["other"] < 0.2 * report["total_seconds"]


def test_steps_are_denoising_and_guidance(report: dict) -> None:
    steps = [step["seconds"] for step in report["steps"]]
    stages = report["stages"]
    assert len(steps) == STEPS
    inside = stages["denoise"]["seconds"] + stages["guidance"]["seconds"]
    assert sum(steps) == pytest.approx(inside, rel=1e-6)


def test_classes_and_gaps_are_the_whole_step(report: dict) -> None:
    for step in report["steps"]:
        classes = step["classes"]
        assert sum(one["seconds"] for one in classes.values()) == pytest.approx(step["seconds"])
        assert {"attention", PRODUCTS, "fused elementwise", "copies", GAPS} == set(classes)
        assert all(one["count"] > 0 for one in classes.values())
        assert step["attributed_seconds"] > 0


def test_products_and_attention_are_those_of_the_cost_model(engine: Engine, report: dict) -> None:
    """What a step was seen to compute is what the plan counts before any weight is read."""
    _, fit = engine._fitted(kinema.Request(PROMPT, **FIELDS))
    denoise = next(stage for stage in fit.cost.stages if stage.name == "denoise")
    planned: Counter[str] = Counter()
    for work, times in denoise.work.items():
        planned[work.kind] += work.flops * times
    seen = classes_of(report)
    assert seen[PRODUCTS]["flops"] == planned["product"] + planned["packed"]
    assert seen["attention"]["flops"] == planned["attention"] + planned["lookup"]
    each = [step["classes"][PRODUCTS]["flops"] for step in report["steps"]]
    assert set(each) == {seen[PRODUCTS]["flops"] / STEPS}


def test_floors_are_the_sum_over_operators_of_work_over_ceilings(report: dict) -> None:
    ceilings = report["device"]["ceilings"]
    fastest = max(rate for _, rate in ceilings["copy_points"])
    for name, one in classes_of(report).items():
        computing = one["flops"] / ceilings["matmul_flops_per_second"]["float32"]
        assert one["floor_seconds"] >= max(computing, one["bytes"] / fastest) * (1 - 1e-9)
        assert (one["floor_seconds"] == 0) == (name == GAPS)
    rows = report["operations"]
    assert [row["seconds"] for row in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    assert {"mkldnn._linear_pointwise", "aten.linear"} & {row["name"] for row in rows}


def test_the_warm_run_is_told_apart(report: dict) -> None:
    steady = report["steady"]
    assert sum(steady["stages"].values()) == pytest.approx(steady["total_seconds"], rel=1e-6)
    assert len(steady["step_seconds"]) == STEPS
    assert steady["stages"]["encode"] > 0  # not found in the cache of the first call
    assert steady["stages"]["load"] < report["stages"]["load"]["seconds"]


def test_memory_of_stages(engine: Engine, report: dict) -> None:
    peaks = [stage["peak_memory_bytes"] for stage in report["stages"].values()]
    weights = sum(p.nbytes for p in engine.transformer.parameters())
    assert all(isinstance(peak, int) and peak > weights for peak in peaks)
    assert "resident memory" in report["memory"]["how"]


def test_what_was_made_is_the_plain_video(engine: Engine, found: Profile, folder: Path) -> None:
    """Looked at or not, a request comes to the same bits; the file is that of `generate`."""
    plain = engine.generate(PROMPT, **FIELDS)
    assert read_info(folder / "video.mp4")["media"]["num_frames"] == FRAMES
    from kinema.runtime.profiling.watch import Stopwatch
    from kinema.runtime.profiling.watched import Watched

    request = kinema.Request(PROMPT, **FIELDS)
    watched = Watched(engine, request, engine.session(request).plan, Stopwatch())
    try:
        frames = watched.finish().frames
    finally:
        watched.undress()
    assert np.array_equal(frames, plain.frames)


def test_nothing_is_left_on_the_engine(engine: Engine, found: Profile) -> None:
    """Off, a step runs the code that it always ran: no hook, no wrapper, no mode, no profiler."""
    for model in (engine.transformer, engine.vae, engine.sound):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not {"encode", "decode", "encode_chunks", "forward"} & set(vars(model))
    assert not {"encode", "open"} & set(vars(engine.text_encoder))
    assert type(engine.session(PROMPT)) is Session
    assert torch.utils._python_dispatch._len_torch_dispatch_stack() == 0
    assert not torch.autograd._profiler_enabled()


def test_a_plain_step_calls_the_operators_that_it_called_before(found: Profile) -> None:
    """Beside an engine that was never profiled, to the operator."""

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: Counter[str] = Counter()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names[str(function)] += 1
            return function(*args, **(kwargs or {}))

    def operators(engine: Engine) -> Counter[str]:
        session = engine.session(PROMPT, **FIELDS)
        next(session)
        with Counting() as counting:
            next(session)
        return counting.names

    assert operators(found._raw.first.engine) == operators(kinema.load(device="cpu"))


def test_files(found: Profile, report: dict, folder: Path) -> None:
    saved = found.save(folder / "report.json")
    assert reports.read(saved) == json.loads(json.dumps(report))
    assert "</html>" in found.save(folder / "report.html").read_text()
    with pytest.raises(UsageError, match=r"must end in \.json or \.html"):
        found.save(folder / "report.txt")
    with pytest.raises(UsageError, match="does not exist"):
        found.save(folder / "nowhere" / "report.json")
    with pytest.raises(UsageError, match="has no trace"):
        Profile(report).save_trace(folder / "trace.json")


def test_the_trace_has_stages_steps_and_operators(
    found: Profile, report: dict, folder: Path
) -> None:
    events = json.loads(found.save_trace(folder / "trace.json").read_text())["traceEvents"]
    ranges = [event for event in events if event["ph"] == "X"]
    assert {"ts", "dur", "pid", "tid", "name", "cat"} <= set(ranges[0])
    assert all(event["dur"] >= 0 for event in ranges)
    steps = [e for e in ranges if e["cat"] == "step" and e["pid"] == 1]
    assert [event["name"] for event in steps] == [f"step {i + 1}" for i in range(STEPS)]
    stages = {event["name"] for event in ranges if event["cat"] == "stage"}
    assert set(report["stages"]) - {"warm-up", "other"} <= stages
    inside = [e for e in ranges if e["pid"] == 2]
    around = [e for e in inside if e["cat"] == "step"]
    products = [e for e in inside if e["cat"] == PRODUCTS]
    assert sum(e["args"]["flops"] for e in products) == classes_of(report)[PRODUCTS]["flops"]
    for event in products:  # a nanosecond is what the format rounds to
        assert any(
            s["ts"] - 0.01 <= event["ts"]
            and event["ts"] + event["dur"] <= s["ts"] + s["dur"] + 0.01
            for s in around
        )


def test_text_for_a_terminal(found: Profile) -> None:
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    for word in ("denoise", "attention", "launch gaps", "half the steps", "GFLOP/s", "when warm"):
        assert word in text


def test_predictions(report: dict, engine: Engine) -> None:
    named = {one["name"]: one["seconds"] for one in report["what_if"]}
    total, stages = report["total_seconds"], report["stages"]
    assert named["text encoder cached"] == pytest.approx(total - stages["encode"]["seconds"])
    steps = sum(step["seconds"] for step in report["steps"])
    assert named["half the steps (1)"] == pytest.approx(total - steps * 2 / 3)
    one = classes_of(report)[PRODUCTS]
    gain = one["seconds"] - one["floor_seconds"]
    assert named["matrix products at the floor"] == pytest.approx(total - gain)
    assert named["every class at its floor"] <= min(named[n] for n in named if "at the floor" in n)


def test_another_size_grows_stages_as_the_cost_model_says(report: dict) -> None:
    ours = [{"stage": "denoise", "seconds": 2.0}, {"stage": "decode", "seconds": 1.0}]
    theirs = [{"stage": "denoise", "seconds": 8.0}, {"stage": "decode", "seconds": 0.5}]
    stages = {name: report["stages"][name]["seconds"] for name in report["stages"]}
    wanted = report["total_seconds"] + 3 * (stages["denoise"] + stages["guidance"])
    wanted -= 0.5 * (stages["decode"] + stages["mark"] + stages["mux"])
    assert what_if._scaled(report, ours, theirs) == pytest.approx(wanted)


def test_a_size_that_the_model_does_not_make_is_refused(report: dict, engine: Engine) -> None:
    request = kinema.Request(PROMPT, num_inference_steps=10**9)
    assert what_if._sizes(report, engine, request, None) == []
    with pytest.raises(UsageError, match="num_inference_steps"):
        what_if._sizes(report, engine, request, ((32, 32),))


def test_an_executor_that_hides_its_operators_says_so(
    engine: Engine, found: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kinema.runtime.profiling import run

    monkeypatch.setattr(engine, "executor", "compiled")
    request = kinema.Request(PROMPT, num_frames=1, num_inference_steps=1)
    (step,) = run._inside(request, engine)
    assert step.seconds > 0 and step.calls == []
    first = found._raw.first
    assert any("compiled" in note for note in run._notes(first, engine, 1.0))
    from kinema.runtime.profiling.attribution import split

    classes, _ = split(step, 0.5, ceilings_module.Ceilings("", {"float32": 1.0}, ((1, 1.0),), 1.0))
    assert list(classes) == [HIDDEN] and classes[HIDDEN]["seconds"] == 0.5


def test_latents_alone_have_no_stages_after_the_steps(engine: Engine, found: Profile) -> None:
    from kinema.runtime.profiling import run

    request = kinema.Request(PROMPT, num_frames=1, num_inference_steps=1, output="latents")
    made = run._first(request, engine, None, None)
    found = made.watch.seconds()
    assert not {"decode sound", "mux", "mark", "sign"} & set(found)
    assert found["decode"] < found["denoise"] and len(made.step_seconds) == 1


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="prompt is empty"):
        kinema.profile(" ")
    with pytest.raises(UsageError, match="a Request or a prompt is expected, not int"):
        kinema.profile(3)
    with pytest.raises(UsageError, match="a Request has no colour"):
        kinema.profile(kinema.Request(PROMPT), colour="red")


def test_comparing(report: dict) -> None:
    from kinema.runtime.profiling.compare import compare
    from kinema.runtime.profiling.told import told_of_two

    after = copy.deepcopy(report)
    for step in after["steps"]:
        step["classes"][PRODUCTS]["seconds"] *= 0.5
    after["plan"]["executor"] = "eager"
    found = compare(report, after)
    assert found["classes"][PRODUCTS]["change"] == pytest.approx(-0.5)
    assert found["classes"]["attention"]["change"] == 0
    assert found["refused"] is None and found["stages"]["decode"]["change"] == 0
    assert "-50.0 %" in told_of_two(found) and "executor packed before" in told_of_two(found)
    after["device"] = {**after["device"], "name": "another", "type": "cuda"}
    found = compare(report, after)
    text = told_of_two(found)
    assert "another (cuda)" in found["refused"] and "do not compare" in text
    assert found["classes"][PRODUCTS]["change"] is None and "%" not in text
    assert found["classes"][PRODUCTS]["after"] > 0 and max(map(len, text.splitlines())) <= 80
