"""The benchmark of frames that the embedded model is shown: what it shows, and how it measures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import kinema
from kinema.benchmarks import file_tables, measure, shown


def test_what_is_shown_is_not_what_is_measured():
    clip = np.arange(33)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    for kind in shown.KINDS.values():
        covered = {
            at % 33
            for condition in kind.conditions(clip)
            for at in range(condition.frame, condition.frame + len(condition.frames or (0,)))
        }
        assert not covered & set(range(*kind.made(33).indices(33)))
        assert len(covered) == kind.first + kind.last


@pytest.mark.parametrize("kind", ["nothing", "first and last frame"])
def test_a_kind_is_measured(kind):
    found = shown.measure(kinema.load(), shown.KINDS[kind], clips=1, steps=2)
    assert all(0 <= found[name] <= 1 for name in ("motion", "colour", "shape", "background"))
    assert found["psnr_db"] > 5 and not math.isinf(found["psnr_db"])


def test_committed_rows_make_the_table():
    results = json.loads((measure.RESULTS / "shown.json").read_text())
    assert list(results["rows"]) == list(shown.KINDS)
    assert file_tables.shown(results).count("\n| ") == len(shown.KINDS)
