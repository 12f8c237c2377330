"""Two reports side by side: what became faster, stage by stage and class by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .report import classes_of


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds before and after, of the whole, each stage and each class of all steps together.

    `change` is after over before, minus one; None where there was nothing before. `refused` says
    why the two do not compare, and then there are no changes; the figures are there all the same.
    """
    refused = _refused(before, after)
    first, second = classes_of(before), classes_of(after)
    stages = {name: _seconds(before, name) for name in before["stages"]}
    later = {name: _seconds(after, name) for name in after["stages"]}
    ours = {name: one["seconds"] for name, one in first.items()}
    theirs = {name: one["seconds"] for name, one in second.items()}
    totals = {"total": before["total_seconds"]}, {"total": after["total_seconds"]}
    return {
        "refused": refused,
        "differs": _differences(before, after),
        **_pairs(*totals, refused),
        "stages": _pairs(stages, later, refused),
        "classes": _pairs(ours, theirs, refused),
    }


def _refused(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    kinds = [_kind(report) for report in (before, after)]
    if kinds[0] == kinds[1]:
        return None
    return f"one ran on {kinds[0]}, the other on {kinds[1]}: a change would say nothing"


def _kind(report: Mapping[str, Any]) -> str:
    device = report["device"]
    kind = device.get("type")
    return f"{device['name']} ({kind})" if kind else device["name"]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What was not the same in both, as words: of the plan, the model and the versions."""
    found = []
    for part in ("plan", "model", "versions", "device"):
        ours, theirs = (dict(report.get(part) or {}) for report in (before, after))
        if part == "device":
            ours, theirs = ({"threads": device.get("threads")} for device in (ours, theirs))
        for name in dict.fromkeys([*ours, *theirs]):
            if ours.get(name) != theirs.get(name):
                found.append(f"{name} {ours.get(name)} before, {theirs.get(name)} after")
    return found


def _seconds(report: Mapping[str, Any], stage: str) -> float:
    return report["stages"][stage]["seconds"]


def _pairs(
    before: Mapping[str, float], after: Mapping[str, float], refused: str | None
) -> dict[str, Any]:
    found = {}
    for name in dict.fromkeys([*before, *after]):
        ours, theirs = before.get(name, 0.0), after.get(name, 0.0)
        change = None if refused or not ours else theirs / ours - 1
        found[name] = {"before": ours, "after": theirs, "change": change}
    return found
