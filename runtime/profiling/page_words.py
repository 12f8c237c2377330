"""What a report says in words: what was run, where, with what, and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import quantities as say
from .page_facts import Report


def told(value: Any) -> str:
    """A value of the report as words."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{name} {told(one)}" for name, one in value.items() if one not in (None, "")
        )
    if isinstance(value, (list, tuple)):
        return ", ".join(map(told, value))
    return say.digits(value) if isinstance(value, float) else str(value)


def subtitle(report: Report) -> str:
    """Model, size, steps and device in one line."""
    plan, model = report.get("plan") or {}, report.get("model") or {}
    parts = [model.get("name")]
    if "width" in plan and "height" in plan:
        parts.append(f"{plan['width']}x{plan['height']}")
    for name, words in (("num_frames", "frames"), ("num_inference_steps", "steps")):
        if name in plan:
            parts.append(f"{plan[name]} {words}")
    parts += [plan.get("dtype"), plan.get("executor"), report["device"]["name"]]
    return " \N{MIDDLE DOT} ".join(str(part) for part in parts if part)


def settings(report: Report) -> list[tuple[str, str]]:
    """Whatever was set, and how it was measured, as titles and words."""
    device, request = report["device"], report.get("request") or {}
    ceilings = device.get("ceilings") or {}
    attribution = report.get("attribution") or {}
    entries = {
        "model": report.get("model"),
        "request": {key: value for key, value in request.items() if key != "prompt"},
        "plan": report.get("plan"),
        "device": {"": device["name"], "threads": device.get("threads")},
        "ceilings measured": [ceilings.get("measured"), ceilings.get("versions")],
        "versions": report["versions"],
        "overhead": report.get("overhead"),
        "classes by": [attribution.get("by"), attribution.get("note")],
        "memory": report.get("memory"),
        "notes": report.get("notes"),
    }
    return [(name, words) for name, value in entries.items() if (words := _some(value))]


def _some(value: Any) -> str:
    """Words of whatever is there; nothing of what is empty."""
    if isinstance(value, (list, tuple)):
        value = [one for one in value if one]
    return told(value).strip() if value else ""


def differences(before: Report, after: Report) -> list[tuple[str, str, str]]:
    """Settings that are not the same in both: a comparison across them says more than one thing."""
    first, second = _flat(before), _flat(after)
    return [
        (name, first.get(name, say.ABSENT), second.get(name, say.ABSENT))
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    ]


def _flat(report: Report) -> dict[str, str]:
    device = report["device"]
    found = {"device": device["name"], "threads": told(device.get("threads"))}
    for name in ("model", "request", "plan", "versions"):
        inside = report.get(name) or {}
        found |= {f"{name} {key}": told(one) for key, one in inside.items() if one is not None}
    return found
