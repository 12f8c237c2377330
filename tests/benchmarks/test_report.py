"""Tables and plots come from committed results and nowhere else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kinema.benchmarks import measure, report, rows, tables
from kinema.benchmarks.measure import interleave, ratios, summary
from kinema.benchmarks.rows import Row
from kinema.runtime.errors import KinemaError

ROOT = Path(report.__file__).parent.parent
ABOUT = Row(device="A chip", threads=2, versions="torch 2.13.0", commit="abc", date="2026-11-23")


def test_pages_and_plots_are_what_the_committed_rows_give():
    report.report(check=True)


def test_the_readme_and_the_page_of_numbers_have_tables():
    for page in ("README.md", "docs/numbers.md"):
        assert page in report.PAGES
        assert report.MARK.search((ROOT / page).read_text())


def test_a_table_without_results_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    text = "<!-- table: evaluate -->\nold\n<!-- end -->"
    assert report.with_tables(text, []) == text


def test_an_unknown_table_is_refused():
    with pytest.raises(KinemaError, match="no table 'typo'"):
        report.with_tables("<!-- table: typo -->\nold\n<!-- end -->", [])


def test_a_page_that_was_typed_into_is_found(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: waterfall -->\n| 2.0 |\n<!-- end -->")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PAGES", ("page.md",))
    monkeypatch.setattr(rows, "read", lambda: [])
    monkeypatch.setattr(report, "_plots", lambda *_: iter(()))
    with pytest.raises(KinemaError, match=r"out of date: page.md"):
        report.report(check=True)
    assert report.report() == ["page.md"]
    assert tables.NONE_YET in page.read_text()
    assert report.report(check=True) == []


def test_a_line_for_each_runner_with_its_ratio_quality_and_reason():
    about = replace(ABOUT, bench="video", name="embedded", dtype="float32",
                         shapes="latents=1x2 steps=3 guidance=4")  # fmt: skip
    seconds = {"diffusers eager": [2.0, 2.0, 2.0], "kinema": [0.5, 0.5, 0.4]}
    found = rows.timed(about, seconds, "diffusers eager", {"kinema": (55.04, 0.99991)})
    found.append(rows.skipped(about, "cache-dit", "it is not installed"))
    lines = tables.table("end_to_end", found).splitlines()
    assert "| **embedded, float32**, beside diffusers eager | | | | | |" in lines
    assert "| kinema | 500.0 ms | 400.0 to 500.0 | 4.00 (4.00 to 5.00) | 55.0 | 0.9999 |" in lines
    assert "| cache-dit | left out: it is not installed | | | | |" in lines
    assert "A chip, 2 threads, torch 2.13.0, commit abc, 2026-11-23" in lines[-1]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}
    assert cells == {7}


@pytest.mark.parametrize("name", tables.OF_ROWS)
def test_every_table_can_do_without_rows(name):
    assert tables.table(name, []) == tables.NONE_YET
    other = rows.one(replace(ABOUT, bench="other"), "x", "seconds", "s", 1)
    assert tables.table(name, [other]) == tables.NONE_YET


def test_devices_have_tables_of_their_own():
    about = replace(ABOUT, bench="waterfall", name="embedded", dtype="float32")
    found = [rows.one(replace(about, device=device), "x", "seconds", "s", 1) for device in "AB"]
    assert tables.table("waterfall", found).count("| x | 1.00 s |") == 2


def test_functions_take_turns_and_warm_up_apart():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleave(functions, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_summaries_of_known_samples():
    found = summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (found["median_s"], found["p20_s"], found["p80_s"]) == (3.5, 2.0, 5.0)
    assert ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == [2.0, 3.0, 1.0]
