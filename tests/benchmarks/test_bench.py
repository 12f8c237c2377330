"""`kinema bench`: videos side by side, with their quality, kept as rows."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

from kinema.benchmarks import bench, end_to_end, measure, rows, samplers, techniques
from kinema.benchmarks.rows import Row
from kinema.runtime import cli

RUNNERS = ("diffusers eager", "cache-dit", "kinema eager", "kinema packed", "kinema graph")
FEW = 2  # steps
# Frames are rounded to 1/255: what is apart by roundings of fp32 alone differs in few pixels, by 1.
EQUAL = 60.0


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(end_to_end, "RUNNERS", RUNNERS)


@pytest.fixture
def constant(monkeypatch):
    """A benchmark that measures nothing."""
    about = Row(device="A chip", bench="step", dtype="float32")
    found = [rows.one(about, "x", "seconds", "s", 1.5), rows.skipped(about, "y", "no reason")]
    monkeypatch.setitem(bench.PARTS, "step", lambda asked: iter(found))
    return found


def test_videos_of_all_are_the_exact_one_or_told_apart(tmp_path):
    asked = bench.Asked(repeats=1, steps=FEW, dtypes=("float32",), compiled=False)
    found = bench.run(["video"], asked, tmp_path / "rows.csv")
    assert len(rows.read(tmp_path / "rows.csv")) == len(found)
    seconds = rows.select(found, quantity="seconds")
    psnr = {row.runner: row.psnr for row in seconds}
    assert psnr.pop("kinema eager") == 100 and "diffusers eager" in psnr
    # Of two steps that differ as much as these, cache-dit reuses nothing.
    assert all(decibels > EQUAL for decibels in psnr.values()), psnr
    assert {row.base for row in rows.select(found, quantity="ratio")} == {"diffusers eager"}
    skipped = {row.runner: row.note for row in rows.select(found, quantity="skipped")}
    assert "need a GPU" in skipped["kinema graph"]


def test_what_is_not_installed_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    assert "pip install cache-dit" in samplers.missing("cache-dit", "cpu", "float32")
    assert "kinema[export]" in samplers.missing("onnxruntime", "cpu", "float32")


def test_techniques_come_one_on_top_of_another():
    found = techniques.waterfall(samplers.Terms(steps=1), repeats=1)
    bars = rows.select(found, quantity="seconds")
    assert [row.runner for row in bars][:3] == [
        "diffusers eager", "what is constant once", "both branches in one forward",
    ]  # fmt: skip
    assert (bars[-1].runner, bars[-1].dtype) == ("bfloat16", "bfloat16")
    assert all(row.psnr > EQUAL for row in bars if row.dtype == "float32")


def test_time_against_an_axis(monkeypatch):
    axes = {"tokens": [{"num_frames": 1, "steps": 1}], "batch": [{"batch": 2, "steps": 1}]}
    monkeypatch.setattr(techniques, "AXES", axes)
    found = list(techniques.scaling(samplers.Terms(), repeats=1))
    sizes = [row.sizes for row in rows.select(found, runner="diffusers eager")]
    assert sizes == [
        {"tokens": "20", "steps": "1", "batch": "1"},
        {"tokens": "180", "steps": "1", "batch": "2"},
    ]


def test_an_unknown_part_is_refused(capsys):
    assert cli.run(["bench", "--only", "typo"]) == 2
    assert "no benchmark 'typo'; known: video, step" in capsys.readouterr().err


def test_the_command_says_keeps_and_prints_rows(constant, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    assert cli.run(["bench", "--only", "step", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "step float32 x: seconds 1.5 s" in out and "y: skipped, no reason" in out
    assert rows.read(tmp_path / "a_chip.csv") == constant
    assert cli.run(["bench", "--only", "step", "--json"]) == 0
    assert [row["median"] for row in json.loads(capsys.readouterr().out)] == [1.5, None]
