"""Every kernel compiles for every chip, ahead of time, and is what it should be there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from kinema.kernels import aot, dispatch
from kinema.kernels._compilations import WGMMA, Compilation

KEYS = {"op", "config", "default", "arch", "registers", "spills", "shared", "instructions"}
GOOD = {
    "op": "attention",
    "config": "bf16",
    "default": True,
    "arch": "sm_90",
    "registers": 200,
    "spills": 0,
    "shared": 131072,
    "instructions": {"HGMMA": 12},
}


@pytest.fixture(scope="module")
def checked() -> subprocess.CompletedProcess[str]:
    """`kinema kernels check --json` in a process of its own: here, kernels are interpreted."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "kinema", "kernels", "check", "--json"],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_default_configurations_pass(checked) -> None:
    assert checked.returncode == 0, checked.stderr
    rows: list[dict[str, Any]] = json.loads(checked.stdout)
    assert all(row.keys() == KEYS and row["default"] for row in rows)
    for arch in aot.ARCHES:
        ops = {row["op"] for row in rows if row["arch"] == arch}
        assert ops == dispatch.TABLE.keys(), f"{set(dispatch.TABLE) - ops} missing on {arch}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spills": 84}, "spills 84 bytes"),
        ({"shared": 232449}, "wants 232449 bytes of shared memory; 232448 are there"),
        ({"arch": "sm_89"}, "wants 131072 bytes of shared memory; 101376 are there"),
        ({"instructions": {"HMMA": 64}}, "has no warpgroup product"),
        ({"error": "no such instruction"}, "does not compile: no such instruction"),
    ],
)
def test_what_fails(change, message) -> None:
    needs = {("attention", "bf16"): WGMMA}
    assert aot.failures([GOOD], needs) == []
    (line,) = aot.failures([{**GOOD, **change}], needs)
    assert message in line


def test_what_does_not_fail() -> None:
    spilling = {**GOOD, "default": False, "spills": 84}
    foreign = {**GOOD, "arch": "gfx942", "spills": 84, "error": "no fp8"}
    assert aot.failures([spilling, foreign], {}) == []


def test_an_error_is_told_with_its_innermost_cause() -> None:
    cause = ValueError("shapes (16, 8) and (16, 8) do not fit")
    middle = RuntimeError("at 38:18:\n    acc = tl.dot(left, right)\n          ^")
    middle.__cause__ = cause
    assert aot._why(middle) == "ValueError: shapes (16, 8) and (16, 8) do not fit"
    middle.__cause__ = AssertionError()
    assert aot._why(middle) == "AssertionError: acc = tl.dot(left, right)"


def test_compiles_once_what_is_the_same_and_keeps_no_errors(monkeypatch, tmp_path) -> None:
    good, bad = (SimpleNamespace(cache_key=key) for key in ("good", "bad"))
    found = tuple(
        Compilation("attention", config, kernel, {}, default=("sm_90",))
        for config, kernel in (("one", good), ("other", good), ("broken", bad))
    )
    compiled = []

    def compile_one(compilation, arch):
        compiled.append(compilation.kernel.cache_key)
        return {"error": "why"} if compilation.kernel is bad else {"registers": 7}

    monkeypatch.setattr(aot, "_all", lambda: found)
    monkeypatch.setattr(aot, "compile_one", compile_one)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET")
    for expected in (["good", "bad"], ["good", "bad", "bad"]):
        aot._cache_file.cache_clear()
        rows = aot.check(["sm_90"], jobs=1)
        assert compiled == expected
        assert [row["config"] for row in rows] == ["one", "other", "broken"]
        assert [row.get("registers") for row in rows] == [7, 7, None]
    aot._cache_file.cache_clear()


def test_refuses_while_interpreting() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is set"):
        aot.check()
