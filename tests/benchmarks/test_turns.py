"""The benchmark of taking turns: what it pretends is a session, the scheduler takes for one."""

from __future__ import annotations

from kinema.benchmarks import rows, turns


def test_a_turn_is_timed_beside_a_step():
    found = turns.overhead(repeats=1)
    seconds = {row.runner: row.value for row in rows.select(found, quantity="seconds")}
    assert seconds.keys() == {"a turn", "a step"} and 0 < seconds["a turn"] < seconds["a step"]
