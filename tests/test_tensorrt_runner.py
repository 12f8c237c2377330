"""Engines: which package, what is refused, and how they are run, on a machine made up for it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kinema.runtime.errors import KinemaError, UsageError
from kinema.runtime.graphs.tensorrt import PLAIN, RTX, Range, check, find, flavour_of, pick
from kinema.runtime.graphs.tensorrt_runner import TensorRTRunner

# ---- what an architecture needs ------------------------------------------------------------------


def test_an_architecture_says_which_package_builds_for_it():
    assert flavour_of(["sm_89", "sm_120"]) == RTX
    assert flavour_of(["sm_90"]) == flavour_of(["sm_100"]) == PLAIN
    with pytest.raises(UsageError, match=r"arch is 'sm_70'; sm_75, .* work"):
        flavour_of(["sm_89", "sm_70"])
    with pytest.raises(UsageError, match="no one engine serves sm_89, sm_90"):
        flavour_of(["sm_89", "sm_90"])
    with pytest.raises(UsageError, match="arch is ''"):
        flavour_of([])


@pytest.mark.parametrize(
    ("flavour", "command"),
    [(RTX, r"pip install 'kinema\[tensorrt\]'"), (PLAIN, "tensorrt-cu13 --extra-index-url https")],
)
def test_a_missing_package_is_told_how_to_install(monkeypatch, flavour, command):
    monkeypatch.setitem(sys.modules, flavour, None)
    with pytest.raises(KinemaError, match=command):
        find(flavour)


def test_nothing_of_it_is_imported_by_the_modules_themselves():
    code = (
        "import sys; import kinema.export.tensorrt, kinema.runtime.graphs.tensorrt_runner;"
        "print([m for m in sys.modules if m.startswith(('tensorrt', 'onnx'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# ---- running -------------------------------------------------------------------------------------


def test_the_profile_whose_best_shapes_are_nearest_is_taken():
    wide = {"x": Range((1, 4), (32, 4), (64, 4))}
    narrow = {"x": Range((1, 4), (2, 4), (8, 4))}
    assert pick([wide, narrow], {"x": (3, 4)}) == 1
    assert pick([wide, narrow], {"x": (7, 4)}) == 1  # 3.5 times the one, a 4.6th of the other
    assert pick([wide, narrow], {"x": (9, 4)}) == 0
    with pytest.raises(UsageError) as told:
        pick([narrow, wide], {"x": (80, 4)})
    assert str(told.value) == (
        "x has shape (80, 4), (1, 4) to (64, 4) work in the nearest bucket; build one with:"
        " kinema export MODEL --to tensorrt --shapes"
    )
    with pytest.raises(UsageError, match=r"x has shape \(3,\)"):
        pick([narrow], {"x": (3,)})


FACTS = {"flavour": RTX, "version": "1.7", "arches": ["sm_89", "sm_120"]}


@pytest.mark.parametrize(
    ("changed", "arch", "told"),
    [
        ({}, "sm_90", "for sm_89, sm_120, this GPU is sm_90; rebuild: {line} --arch sm_90"),
        ({}, "sm_70", "this GPU is sm_70; TensorRT is not offered for it"),
        ({"flavour": PLAIN}, "sm_89", "of tensorrt, sm_89 is run by tensorrt_rtx; rebuild: {line}"),
        (
            {"version": "1.6"},
            "sm_89",
            "1.6, 1.7 is installed; rebuild: {line} --arch sm_89 .*==1.6",
        ),
    ],
)
def test_engines_of_something_else_are_refused_with_what_to_make(changed, arch, told):
    line = "kinema export MODEL --to tensorrt"
    with pytest.raises(UsageError, match=told.format(line=line)):
        check({**FACTS, **changed}, arch, lambda flavour: "1.7")
    check(FACTS, "sm_120", lambda flavour: "1.7")


class Made:
    """A machine whose engines give 2x, and whose captured work is what was bound at the time."""

    def __init__(self, capturable=True):
        self.told, self.capturable, self.inside = [], capturable, False

    def arch(self):
        return "sm_89"

    def version(self, flavour):
        return "1.7"

    def open(self, file, flavour, weight_budget):
        self.told.append(("open", file, flavour, weight_budget))
        return MadeEngine(self)

    def empty(self, shape, dtype):
        return torch.full(shape, -1, dtype=dtype)

    @contextmanager
    def own_stream(self):
        self.inside = True
        yield
        self.inside = False

    def capture(self, work):
        self.told.append("capture")

        def replay():
            self.told.append("replay")
            work(captured=True)

        return replay

    def finish(self):
        self.told.append("finish")


class MadeEngine:
    inputs = {"x": torch.float16, "scale": torch.float32}  # noqa: RUF012
    outputs = {"y": torch.float32}  # noqa: RUF012
    profiles = (
        {"x": Range((1, 2), (2, 2), (4, 2)), "scale": Range((), (), ())},
        {"x": Range((5, 2), (8, 2), (16, 2)), "scale": Range((), (), ())},
    )

    def __init__(self, machine):
        self.machine = machine

    def context(self, profile, shapes):
        self.machine.told.append(("context", profile, shapes["x"]))
        return MadeContext(self.machine, shapes)


class MadeContext:
    def __init__(self, machine, shapes):
        self.machine, self.shapes, self.buffers = machine, shapes, {}

    def shape(self, name):
        return self.shapes["x"]

    def bind(self, name, buffer):
        self.buffers[name] = buffer

    def can_be_captured(self):
        return self.machine.capturable

    def enqueue(self, captured=False):
        assert self.machine.inside
        if not captured:
            self.machine.told.append("enqueue")
        self.buffers["y"].copy_(self.buffers["x"].float() * self.buffers["scale"])


@pytest.fixture
def machine():
    return Made()


def runner(machine, **options):
    device = torch.device("cpu")
    return TensorRTRunner(Path("m.engine"), device, facts=FACTS, machine=machine, **options)


def doubled(run, rows, value=1.0):
    x = torch.full((rows, 2), value)
    (made,) = run({"x": x, "scale": torch.tensor(2.0)}).values()
    assert torch.equal(made, 2 * x)
    return made


def test_a_shape_is_run_then_captured_then_replayed(machine):
    run = runner(machine, weight_budget=7)
    first, second, third = (doubled(run, 3, value) for value in (1.0, 2.0, 3.0))
    assert machine.told == [
        ("open", Path("m.engine"), RTX, 7),
        ("context", 0, (3, 2)),
        "enqueue",
        "capture",
        "replay",
        "replay",
    ]
    # Results are the caller's: later calls leave them as they are.
    assert [x[0, 0].item() for x in (first, second, third)] == [2.0, 4.0, 6.0]


def test_shapes_have_contexts_of_their_own_and_the_oldest_is_dropped(machine):
    run = runner(machine)
    for rows in (1, 2, 3, 8, 1, 16):
        doubled(run, rows)
    contexts = [told[1:] for told in machine.told if told[0] == "context"]
    assert contexts == [(0, (1, 2)), (0, (2, 2)), (0, (3, 2)), (1, (8, 2)), (1, (16, 2))]
    assert machine.told.count("finish") == 1
    doubled(run, 1)
    assert machine.told[-1] == "replay"
    doubled(run, 2)
    assert ("context", 0, (2, 2)) in machine.told[-3:]


def test_work_that_cannot_be_captured_is_enqueued_each_time():
    machine = Made(capturable=False)
    run = runner(machine)
    for _ in range(3):
        doubled(run, 3)
    assert machine.told[2:] == ["enqueue"] * 3


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"x": (3, 2)}, "takes x, scale; 'scale' is missing"),
        ({"x": (3, 2), "scale": (), "z": ()}, "takes x, scale; 'z' is not one of them"),
        ({"x": (17, 2), "scale": ()}, r"\(17, 2\), \(5, 2\) to \(16, 2\) work in the nearest"),
    ],
)
def test_other_inputs_are_refused(machine, inputs, told):
    run = runner(machine)
    with pytest.raises(UsageError, match=told):
        run({name: torch.zeros(shape) for name, shape in inputs.items()})
    assert len(machine.told) == 1


def test_an_engine_is_not_opened_where_it_cannot_run(machine):
    device = torch.device("cpu")
    with pytest.raises(UsageError, match="rebuild"):
        facts = {**FACTS, "version": "1.6"}
        TensorRTRunner(Path("m.engine"), device, facts=facts, machine=machine)
    with pytest.raises(UsageError, match="runs on NVIDIA GPUs, not on cpu"):
        TensorRTRunner(Path("m.engine"), device, facts=FACTS)
    assert machine.told == []
