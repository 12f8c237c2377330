"""Rows of measurements: made, written, read, replaced."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinema.benchmarks import measure, rows
from kinema.benchmarks.rows import Row

ABOUT = Row(device="A chip", bench="video", name="embedded", dtype="float32", shapes="a=1 b=2x3")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    return tmp_path


def test_a_row_says_where_it_comes_from():
    row = rows.about("step", "embedded", "a=1", "float32", "diffusers", "no-such-package")
    assert row.device and row.date and row.threads and row.commit
    assert "torch " in row.versions and "no-such-package not installed" in row.versions
    assert (row.bench, row.name, row.shapes, row.dtype) == ("step", "embedded", "a=1", "float32")


def test_seconds_and_ratios_of_neighbouring_calls():
    seconds = {"base": [2.0, 9.0, 4.0], "other": [1.0, 3.0, 4.0]}
    base, other, ratio = rows.timed(ABOUT, seconds, "base", {"other": (42.0, 0.5)})
    assert (base.median, base.p20, base.p80, base.n) == (4.0, 2.0, 9.0, 3)
    assert (other.runner, other.unit, other.psnr, other.ssim) == ("other", "s", 42.0, 0.5)
    assert (ratio.quantity, ratio.base, ratio.median, ratio.psnr) == ("ratio", "base", 2.0, 42.0)


def test_what_was_written_is_read_again():
    row = rows.one(ABOUT, "x, of ours", "seconds", "s", 0.123456789, note='a "note"')
    rows.merge([row, rows.skipped(ABOUT, "y", "not\n here")])
    (first, second) = rows.read()
    assert first == replace(row, median=0.123457)
    assert (second.quantity, second.median, second.note) == ("skipped", None, "not here")


def test_a_new_run_replaces_its_rows_alone():
    half = replace(ABOUT, dtype="bfloat16")
    rows.merge([rows.one(ABOUT, "x", "seconds", "s", 1), rows.one(ABOUT, "y", "seconds", "s", 2)])
    rows.merge([rows.one(half, "x", "seconds", "s", 3)])
    rows.merge([rows.one(ABOUT, "x", "seconds", "s", 4)])
    assert [(row.dtype, row.median) for row in rows.read()] == [("bfloat16", 3), ("float32", 4)]


def test_a_file_for_each_device(folder):
    other = replace(ABOUT, device="NVIDIA H200")
    rows.merge([rows.one(ABOUT, "x", "seconds", "s", 1), rows.one(other, "x", "seconds", "s", 1)])
    assert sorted(path.name for path in folder.iterdir()) == ["a_chip.csv", "h200.csv"]
    assert len(rows.select(rows.read(), device="NVIDIA H200")) == 1


def test_sizes_by_name():
    assert ABOUT.sizes == {"a": "1", "b": "2x3"}
