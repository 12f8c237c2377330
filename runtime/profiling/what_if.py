"""What the request would take if: predictions from what was measured, and from the cost model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import KinemaError
from .classes import HIDDEN
from .report import classes_of

if TYPE_CHECKING:
    from ..engine import Engine
    from ..requests.request import Request

# Stages of the cost model, and those of the report that grow as they do.
GROWS = {
    "encode": ("encode",),
    "shown": ("encode pictures",),
    "bind": ("bind",),
    "denoise": ("denoise", "guidance"),
    "decode": ("decode", "mark", "mux"),
    "sound": ("decode sound",),
}
MODEL = "the cost model's ratio, stage by stage, on what was measured"


def predictions(
    report: Mapping[str, Any],
    engine: Engine,
    request: Request,
    sizes: tuple[tuple[int, int], ...] | None = None,
) -> list[dict[str, Any]]:
    """Each with a name, the seconds of the whole request, and how they come about."""
    found = [*_floors(report), *_fewer_steps(report), *_text_known(report)]
    return [*found, *_sizes(report, engine, request, sizes)]


def _floors(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every class at the least that the device could take, one at a time and all at once."""
    total, saved, found = report["total_seconds"], 0.0, []
    for name, one in classes_of(report).items():
        if (gain := one["seconds"] - one["floor_seconds"]) <= 0 or name == HIDDEN:
            continue
        saved += gain
        title = f"no {name}" if one["floor_seconds"] == 0 else f"{name} at the floor"
        found.append({"name": title, "seconds": total - gain})
    if len(found) > 1:
        found.append({"name": "every class at its floor", "seconds": total - saved})
    return found


def _fewer_steps(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    seconds = [step["seconds"] for step in report["steps"]]
    if len(seconds) < 2:
        return []
    half = len(seconds) // 2
    left = sum(seconds) * half / len(seconds)
    total = report["total_seconds"] - sum(seconds) + left
    return [{"name": f"half the steps ({half})", "seconds": total}]


def _text_known(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not (stage := report["stages"].get("encode")):
        return []
    return [{"name": "text encoder cached", "seconds": report["total_seconds"] - stage["seconds"]}]


def _sizes(
    report: Mapping[str, Any],
    engine: Engine,
    request: Request,
    sizes: tuple[tuple[int, int], ...] | None,
) -> list[dict[str, Any]]:
    """The request at other sizes, as far as the model makes them and memory holds them."""
    plan = report["plan"]
    now = plan["height"], plan["width"]
    asked = sizes or tuple((round(now[0] * by), round(now[1] * by)) for by in (0.5, 2.0))
    found, told = [], {now}
    for height, width in asked:
        try:
            other = replace(request, height=height, width=width, adjust=True)
            there = engine.session(other).plan
            if (size := (there.height, there.width)) in told:
                continue
            seconds = _scaled(report, engine.costs(request), engine.costs(other))
        except KinemaError:
            if sizes:
                raise
            continue
        told.add(size)
        found.append({"name": f"at {size[1]}x{size[0]}", "seconds": seconds, "note": MODEL})
    return found


Rows = list[dict[str, Any]]


def _scaled(report: Mapping[str, Any], ours: Rows, theirs: Rows) -> float:
    """Seconds of the request, each stage grown as the cost model says that it grows."""
    total, stages = report["total_seconds"], report["stages"]
    others = {row["stage"]: row["seconds"] for row in theirs}
    for row in ours:
        if not row["seconds"]:
            continue
        ratio = others.get(row["stage"], row["seconds"]) / row["seconds"]
        for name in GROWS.get(row["stage"], ()):
            total += stages[name]["seconds"] * (ratio - 1) if name in stages else 0.0
    return total
