"""README tables come from committed rows and nowhere else."""

from pathlib import Path

import pytest

from kinema.benchmarks import report
from kinema.benchmarks.measure import interleave, median_ratio, summary

ROOT = Path(report.__file__).parent.parent


@pytest.mark.parametrize("page", report.PAGES)
def test_pages_show_the_committed_rows(page):
    text = (ROOT / page).read_text()
    assert report.with_tables(text) == text


def test_a_table_without_rows_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    text = "<!-- table: evaluate -->\nold\n<!-- end -->"
    assert report.with_tables(text) == text


def test_functions_take_turns_and_warm_up_apart():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = interleave(functions, repeats=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_summaries_of_known_samples():
    found = summary([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (found["median_s"], found["p20_s"], found["p80_s"]) == (3.5, 2.0, 5.0)
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0
