"""The gate tells a loss from noise, and says what it cannot compare."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinema.benchmarks import gate, measure, rows
from kinema.benchmarks.rows import Row

VERSIONS = "python 3.11; torch 2.13.0; diffusers 0.42.1"
ROW = Row(
    device="A chip", versions=VERSIONS, bench="gate", name="step", dtype="float32", runner="kinema",
    quantity="ratio", unit="times", base="diffusers eager", n=21,
)  # fmt: skip


def ratio(median: float, spread: float = 0.0) -> Row:
    """A row whose 20th and 80th percentile lie so far apart, as a part of the median."""
    return replace(ROW, median=median, p20=median * (1 - spread / 2), p80=median * (1 + spread / 2))


def verdict(first: Row, second: Row, committed: Row) -> gate.Verdict:
    return gate.judge(first, second, [committed])


def test_noise_is_what_both_sides_may_be_off_by_and_what_the_runs_differ_by():
    found = verdict(ratio(2.0, 0.02), ratio(1.9, 0.06), ratio(2.0, 0.04))
    assert found.noise == pytest.approx(0.02 + 0.03 + 0.05)
    assert not found.lost


def test_a_loss_beyond_the_noise_of_both_runs_is_one():
    assert verdict(ratio(1.7, 0.04), ratio(1.7, 0.04), ratio(2.0, 0.04)).lost
    assert not verdict(ratio(1.95, 0.04), ratio(1.95, 0.04), ratio(2.0, 0.04)).lost


def test_one_bad_run_of_two_is_none():
    assert not verdict(ratio(1.5, 0.04), ratio(1.98, 0.04), ratio(2.0, 0.04)).lost


def test_a_noisy_machine_fails_less():
    assert not verdict(ratio(1.7, 0.4), ratio(1.7, 0.4), ratio(2.0, 0.04)).lost


def test_a_gain_is_no_loss():
    assert not verdict(ratio(2.5), ratio(2.5), ratio(2.0)).lost


@pytest.mark.parametrize(
    ("committed", "why"),
    [
        (replace(ratio(9.0), device="Another"), "no such row of A chip"),
        (replace(ratio(9.0), versions="torch 2.12.0; diffusers 0.42.1"), "measured with torch"),
        (replace(ratio(9.0), name="video"), "no such row"),
    ],
    ids=["device", "versions", "row"],
)
def test_what_cannot_be_compared_is_said(committed, why):
    found = verdict(ratio(2.0), ratio(2.0), committed)
    assert not found.lost and why in found.note and "not compared" in str(found)


def test_both_runs_are_committed_as_one(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    runs = iter([[ratio(2.0, 0.1)], [ratio(2.2, 0.1)]])
    gate.write(lambda: next(runs))
    (row,) = rows.read()
    assert (row.median, row.n) == (2.1, 42)
    assert (row.p20, row.p80) == pytest.approx((1.9, 2.31))


def test_the_command_fails_on_a_loss(monkeypatch, tmp_path, capsys):
    from kinema.runtime import cli

    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    rows.merge([ratio(2.0, 0.04)])
    monkeypatch.setattr(gate, "measure", lambda: [ratio(1.6, 0.04)])
    assert cli.run(["bench", "gate"]) == 1
    assert "step, float32: LOST" in capsys.readouterr().out
    monkeypatch.setattr(gate, "measure", lambda: [ratio(2.0, 0.04)])
    assert cli.run(["bench", "gate"]) == 0


def test_every_measured_ratio_is_committed():
    """What the suite measures, and what is committed of some device, are the same."""
    wanted = {(name, dtype) for name in gate.TURNS for dtype in gate.DTYPES}
    for device in {row.device for row in rows.read()}:
        here = rows.select(rows.read(), device=device, bench="gate")
        assert {(row.name, row.dtype) for row in here} in (set(), wanted)
