"""What a device can do: read off measured points, measured once, kept, measured anew if damaged."""

from __future__ import annotations

import json

import pytest
import torch

from kinema.runtime.errors import KinemaError
from kinema.runtime.ledger import Work
from kinema.runtime.planning import device
from kinema.runtime.planning.device import Ceilings, interpolate, rising
from kinema.runtime.planning.trials import Trial, trials

POINTS = ((100.0, 1.0), (10_000.0, 4.0))
KNOWN = Ceilings("a device", {"product/4": POINTS, "elementwise/4": POINTS}, call=0.5)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kinema"


def test_between_points_seconds_follow_a_line_through_logarithms():
    assert interpolate(POINTS, 1) == interpolate(POINTS, 100) == 1
    assert interpolate(POINTS, 1000) == pytest.approx(2)
    assert interpolate(POINTS, 10_000) == 4
    assert interpolate(POINTS, 20_000) == 8


def test_seconds_are_those_of_all_operations_and_of_what_is_around_them():
    work = {Work("product", 4, 100): 3, Work("elementwise", 4, 10_000): 1, Work("call", 0, 1): 4}
    assert KNOWN.seconds(work) == pytest.approx(3 + 4 + 4 * 0.5)
    beside = Ceilings("a GPU", KNOWN.points, call=0.5, in_turn=False)
    assert beside.seconds(work) == pytest.approx(7)
    assert beside.seconds({Work("call", 0, 1): 100}) == pytest.approx(50)


def test_what_was_not_measured_is_taken_from_what_is_alike():
    assert KNOWN.seconds({Work("packed", 2, 1000): 1}) == pytest.approx(2)
    assert KNOWN.rate("product") == 10_000 / 4
    with pytest.raises(KinemaError, match="attention was not measured on a device"):
        KNOWN.seconds({Work("attention", 4, 1000): 1})


def test_it_is_measured_once_and_kept(cache, monkeypatch):
    count = []
    monkeypatch.setattr(device, "measure", lambda where: count.append(where) or KNOWN)
    assert device.ceilings("cpu") == KNOWN
    (kept,) = cache.glob("ceilings-*.json")
    assert device.ceilings("cpu") == KNOWN
    assert len(count) == 1
    assert torch.__version__ in kept.name.replace("_", "+")
    device.ceilings("cpu", refresh=True)
    assert len(count) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"format": 0}', '{"format": 1, "points": 3}'])
def test_a_damaged_file_is_measured_anew(cache, monkeypatch, damage):
    monkeypatch.setattr(device, "measure", lambda where: KNOWN)
    device.ceilings("cpu")
    (kept,) = cache.glob("ceilings-*.json")
    kept.write_text(damage)
    assert device.ceilings("cpu") == KNOWN
    assert json.loads(kept.read_text())["device"] == "a device"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(device, "measure", lambda where: KNOWN)
    assert device.ceilings("cpu") == KNOWN


def test_measuring_finds_larger_work_to_take_longer(monkeypatch):
    few = [trial for trial in trials("cpu") if trial.amount < 3e7 and trial.item == 4]
    monkeypatch.setattr(device, "trials", lambda kind: iter(few))
    found = device.measure("cpu")
    assert found.in_turn and found.call >= 0
    small, large = (found.seconds({Work("product", 4, n): 1}) for n in (10**5, 10**9))
    assert 0 < small < large


def test_what_is_expected_to_take_too_long_is_left_out(monkeypatch):
    def slow(where):
        return lambda: torch.zeros(1) if where else None

    made = []

    def huge(where):
        made.append(where)
        return slow(where)

    listed = [Trial("product", 4, 1.0, 1 << 30, slow), Trial("product", 4, 1e15, 1 << 30, huge)]
    monkeypatch.setattr(device, "trials", lambda kind: iter(listed))
    monkeypatch.setattr(device, "_call", lambda *_: 0.0)
    assert len(device.measure("cpu").points["product/4"]) == 1
    assert not made


def test_a_busy_moment_does_not_make_less_work_take_longer():
    assert rising([(1, 5.0), (2, 1.0), (3, 9.0), (4, 4.0)]) == (
        (1, 1.0),
        (2, 1.0),
        (3, 4.0),
        (4, 4.0),
    )


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_amounts_of_a_kind_rise(kind):
    last: dict[tuple[str, int], float] = {}
    for trial in trials(kind):
        key = (trial.kind, trial.item)
        assert trial.amount > last.get(key, 0)
        last[key] = trial.amount


def test_the_hosts_memory_is_not_more_than_its_container_may_have(tmp_path, monkeypatch):
    whole = device.memory_bytes("cpu")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CGROUP_LIMITS", (str(limit),))
    limit.write_text("max\n")
    assert device.memory_bytes("cpu") >= whole > 2**20
    limit.write_text("1048576\n")
    assert device.memory_bytes("cpu") == 2**20


def test_the_benchmark_prints_what_was_predicted_beside_what_was_measured(monkeypatch, capsys):
    from kinema.benchmarks import plan

    kinds = {f"{trial.kind}/{trial.item}" for trial in trials("cpu")} | {"packed/4"}
    known = Ceilings("a device", dict.fromkeys(kinds, POINTS))
    monkeypatch.setattr(device, "measure", lambda *_: known)
    plan.main(["--dtype", "float32", "--device", "cpu", "--repeats", "1", "--steps", "2"])
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "embedded, float32"
    assert [line.split(",")[0].strip() for line in told[2:]] == [
        "peak",
        "encode",
        "denoise",
        "decode",
        "all",
    ]
    assert float(told[2].split()[-1]) == pytest.approx(1, abs=0.15)
