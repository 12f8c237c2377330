"""The report of a profile: as a dict, as files, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import UsageError
from ..files import reason_of, whole_or_nothing

NEEDED = ("total_seconds", "stages", "steps", "device", "versions")
NUMBERS = ("count", "seconds", "flops", "bytes", "floor_seconds")


class Traced(Protocol):
    def trace(self) -> dict[str, Any]: ...


class Profile:
    """Where the time of a request went. `str` of it is what `kinema profile` prints."""

    def __init__(self, report: dict[str, Any], raw: Traced | None = None) -> None:
        self.report, self._raw = report, raw

    def __repr__(self) -> str:
        return f"<Profile: {self.report['total_seconds']:.4g} s>"

    def __str__(self) -> str:
        from .told import told

        return told(self.report)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, ready for JSON: total_seconds, stages, steps, device, versions, and more."""
        return self.report

    def save(self, path: str | Path) -> Path:
        """Write it as `.json`, or as a page of its own as `.html`; returns the path."""
        path = check_target(path, (".json", ".html"))
        if path.suffix == ".json":
            return write(path, json.dumps(self.report, indent=1) + "\n")
        from .page import page

        return write(path, page(self.report))

    def save_trace(self, path: str | Path) -> Path:
        """Write stages, steps and operators as a trace that Perfetto and Chrome open."""
        if self._raw is None:
            raise UsageError("a report that was read from a file has no trace; profile anew")
        path = check_target(path, (".json",))
        return write(path, json.dumps(self._raw.trace()))


def check_target(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    """The path, if a report can be written there. Raises `UsageError` that says why not."""
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise UsageError(f"{str(path)!r} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"{str(path)!r} is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"folder {str(path.parent)!r} does not exist")
    return path


def write(path: Path, text: str) -> Path:
    """Write a file whole or not at all."""
    with whole_or_nothing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def read(path: str | Path) -> dict[str, Any]:
    """A report from a file of `Profile.save`. Raises `UsageError` for one that is none."""
    path = Path(path).expanduser()
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {str(path)!r}: {reason_of(error)}") from None
    except ValueError:
        raise UsageError(f"{str(path)!r} is no JSON, so no report of kinema profile") from None
    if problem := _problem(report):
        raise UsageError(f"{str(path)!r} is no report of kinema profile: {problem}")
    return report


def _problem(report: Any) -> str | None:
    """What a report lacks; None where it has what is promised."""
    if not isinstance(report, dict):
        return "it is no object"
    if absent := [name for name in NEEDED if name not in report]:
        return f"it has no {', '.join(absent)}"
    try:
        float(report["total_seconds"])
        str(report["device"]["name"])
        for stage in report["stages"].values():
            float(stage["seconds"])
        for step in report["steps"]:
            float(step["seconds"])
            for one in step["classes"].values():
                [float(one[name]) for name in NUMBERS]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return f"{type(error).__name__} {error}"
    return None


def classes_of(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Sums of each class over all steps, in the order they come."""
    found: dict[str, dict[str, float]] = {}
    for step in report["steps"]:
        for name, one in step["classes"].items():
            into = found.setdefault(name, dict.fromkeys(NUMBERS, 0))
            for number in NUMBERS:
                into[number] += one[number]
    return found
