"""`kinema profile` on the command line: one run, comparisons, and refusals of one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kinema.runtime.cli import run
from kinema.runtime.profiling import ceilings as ceilings_module

DONE = {"count": 1, "seconds": 0.5, "flops": 10, "bytes": 10, "floor_seconds": 0.25}
REPORT = {
    "total_seconds": 1.0,
    "stages": {"denoise": {"seconds": 1.0, "peak_memory_bytes": 5}},
    "steps": [{"seconds": 1.0, "classes": {"attention": DONE}}],
    "device": {"name": "a device", "type": "cpu"},
    "versions": {"torch": "1"},
}


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    for name, seconds in (("a.json", 1.0), ("b.json", 0.75)):
        (tmp_path / name).write_text(json.dumps({**REPORT, "total_seconds": seconds}))
    return [str(tmp_path / name) for name in ("a.json", "b.json")]


def test_a_request_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(ceilings_module.COPIES, "cpu", (1 << 16,))
    monkeypatch.setitem(ceilings_module.PRODUCTS, "cpu", ((64, 64, 64),))
    asked = tmp_path / "request.json"
    asked.write_text(
        json.dumps({"prompt": "a red ball", "num_inference_steps": 2, "num_frames": 1})
    )
    written = {name: tmp_path / f"out.{name}" for name in ("json", "html")}
    files = [f"--{name}={path}" for name, path in written.items()]
    trace = tmp_path / "trace.json"
    code = run(["profile", f"--request={asked}", *files, f"--trace={trace}", "--device=cpu"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "denoise" in said.out and max(map(len, said.out.splitlines())) <= 80
    report = json.loads(written["json"].read_text())
    assert {"total_seconds", "stages", "steps", "device", "versions"} <= set(report)
    assert len(report["steps"]) == 2 and report["plan"]["num_frames"] == 1
    assert report["stages"]["load"]["seconds"] > 0
    assert "</html>" in written["html"].read_text()
    assert json.loads(trace.read_text())["traceEvents"]
    assert not list(tmp_path.glob("*.mp4"))


def test_two_reports(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, page = tmp_path / "c.json", tmp_path / "c.html"
    assert run(["profile", "--compare", *two, "--json", str(out), "--html", str(page)]) == 0
    assert "-25.0 %" in capsys.readouterr().out
    assert json.loads(out.read_text())["total"]["change"] == pytest.approx(-0.25)
    assert "</html>" in page.read_text()


REFUSED = [
    (["profile"], "give a PROMPT"),
    (["profile", "a ball", "--request", "r.json"], "has its own prompt"),
    (["profile", "--request", "r.json"], "no such file"),
    (["profile", "--request", "{list}"], "must hold an object with a prompt"),
    (["profile", "--request", "{broken}"], "is no JSON"),
    (["profile", "--request", "{unknown}"], "a request has these fields: prompt"),
    (["profile", "a ball", "--json", "out.txt"], "must end in .json"),
    (["profile", "a ball", "--html", "{folder}/none/a.html"], "does not exist"),
    (["profile", "a ball", "--num-frames", "7"], "num_frames is 7"),
    (["profile", "a ball", "--at", "big"], "--at 'big' is not WIDTHxHEIGHT"),
    (["profile", "--compare", "{list}", "{list}"], "no report of kinema profile: it is no object"),
    (["profile", "--compare", "{broken}", "{list}"], "is no JSON"),
    (["profile", "--compare", "none.json", "{list}"], "cannot read 'none.json'"),
    (["profile", "a ball", "--compare", "{list}", "{list}"], "leave the prompt out"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refusals_are_one_line(
    line: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    texts = {"list": "[]", "broken": "{", "unknown": '{"prompt": "a ball", "colour": 1}'}
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    names = {name: str(tmp_path / f"{name}.json") for name in texts} | {"folder": str(tmp_path)}
    line = [part.format(**names) for part in line]
    assert run(line) == 2
    said = capsys.readouterr()
    assert reason in said.err and said.err.count("\n") == 1 and said.out == ""


def test_a_report_that_lacks_what_is_promised(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    report = {**REPORT, "steps": [{"seconds": 1.0, "classes": {"attention": {"count": 1}}}]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(report))
    assert run(["profile", "--compare", str(file), str(file)]) == 2
    assert "KeyError 'seconds'" in capsys.readouterr().err
