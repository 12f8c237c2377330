"""What a report's JSON says, in the shapes that the page draws.

Only what the report promises is needed; whatever else is missing is left out of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from . import palette
from . import quantities as say
from .classes import HIDDEN
from .drawing import DASHES
from .page_charts import Bar, Ceilings, Point, Stretch
from .report import NUMBERS
from .spans import MAIN, Span, exclusive

Report = Mapping[str, Any]


@dataclass
class Class:
    """The sum of one class of operation over steps."""

    name: str
    count: float = 0
    seconds: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    floor_seconds: float = 0.0

    @property
    def color(self) -> str:
        return palette.color(self.name)

    @property
    def rate(self) -> float | None:
        """FLOP/s reached."""
        return say.per(self.flops, self.seconds)

    @property
    def traffic(self) -> float | None:
        """Bytes a second reached."""
        return say.per(self.bytes, self.seconds)

    @property
    def over_floor(self) -> float | None:
        return say.per(self.seconds, self.floor_seconds)


def classes(report: Report) -> list[Class]:
    """Sums over all steps, in the palette's order, then in that of the report."""
    found: dict[str, Class] = {}
    for step in report["steps"]:
        for name, one in step["classes"].items():
            into = found.setdefault(name, Class(name))
            for field in NUMBERS:
                setattr(into, field, getattr(into, field) + (one.get(field) or 0))
    known = [name for name in palette.CLASSES if name in found]
    return [found[name] for name in (*known, *(name for name in found if name not in known))]


def total_of(found: list[Class]) -> Class:
    """All classes as one."""
    sums = {field: sum(getattr(one, field) for one in found) for field in NUMBERS}
    return Class("all", **sums)


@dataclass(frozen=True)
class Figures:
    """A request in a few numbers; None is what it did not measure."""

    total: float
    again: float | None
    step: float | None
    over_floor: float | None
    peak: int | None
    peak_stage: str | None


def figures(report: Report) -> Figures:
    steps, stages = report["steps"], report["stages"]
    peaks = {name: one.get("peak_memory_bytes") or 0 for name, one in stages.items()}
    most = max(peaks, key=peaks.__getitem__) if any(peaks.values()) else None
    return Figures(
        total=report["total_seconds"],
        again=(report.get("steady") or {}).get("total_seconds"),
        step=median(step["seconds"] for step in steps) if steps else None,
        over_floor=total_of(classes(report)).over_floor,
        peak=peaks[most] if most else None,
        peak_stage=most,
    )


def bars(report: Report) -> list[Bar]:
    """A bar a step; what no class accounts for is on top."""
    order = [one.name for one in classes(report)]
    found = []
    for index, step in enumerate(report["steps"], start=1):
        inside = step["classes"]
        parts = [(name, inside[name]["seconds"]) for name in order if name in inside]
        rest = step["seconds"] - sum(seconds for _, seconds in parts)
        if rest > 0.005 * step["seconds"]:
            parts.append((HIDDEN, rest))
        floor = sum(one.get("floor_seconds") or 0 for one in inside.values())
        found.append(Bar(f"step {index}", parts, floor or None))
    return found


def points(report: Report) -> list[Point]:
    """Classes that compute and move bytes, for the roofline."""
    return [
        Point(
            one.name,
            one.flops / one.bytes,
            one.rate,
            say.per(one.flops, one.floor_seconds),
            one.color,
        )
        for one in classes(report)
        if one.flops and one.bytes and one.rate
    ]


def ceilings(report: Report) -> Ceilings:
    """What the device was measured at."""
    measured = report["device"].get("ceilings") or {}
    products = measured.get("matmul_flops_per_second") or {}
    slopes = {}
    if bandwidth := measured.get("copy_bytes_per_second"):
        slopes["copy"] = bandwidth
        small = [(rate, size) for size, rate in measured.get("copy_points") or ()]
        if small and max(small)[0] > 1.2 * bandwidth:
            rate, size = max(small)
            slopes[f"copy of {say.size(size)}"] = rate
    return Ceilings(slopes, {name: peak for name, peak in products.items() if peak})


def measured(report: Report) -> list[tuple[str, str | None]]:
    """Each ceiling in words, with the dashes that its line is drawn with."""
    found: list[tuple[str, str | None]] = []
    limits = ceilings(report)
    for index, (name, rate) in enumerate(limits.slopes.items()):
        found.append((f"{name} {say.quantity(rate, 'B/s')}", DASHES[index]))
    for index, (name, peak) in enumerate(limits.tops):
        words = f"matrix products {name} {say.quantity(peak, 'FLOP/s')}"
        found.append((words, DASHES[index % len(DASHES)]))
    return found


def spans(report: Report) -> dict[str, list[Stretch]]:
    """Stretches of each stage, and over them those in which it held the request up.

    One after the other where the report does not say when they were.
    """
    lanes: dict[str, list[Stretch]] = {name: [] for name in report["stages"]}
    found = [_span(one) for one in report.get("timeline") or _in_order(report)]
    for one in found:
        lanes.setdefault(one.stage, []).append(_stretch(one.stage, one.start, one.end, beside=True))
    edges = sorted({edge for one in found for edge in (one.start, one.end)})
    for start, end in pairwise(edges):
        for stage in exclusive(found, start, end):
            lane = lanes.setdefault(stage, [])
            if lane and not lane[-1].beside and lane[-1].end == start:
                start = lane.pop().start
            lane.append(_stretch(stage, start, end, beside=False))
    return {stage: lane for stage, lane in lanes.items() if stage in report["stages"]}


def _span(one: Mapping[str, Any]) -> Span:
    end = one["start"] + one["seconds"]
    return Span(one["stage"], one["start"], end, one.get("thread", MAIN), one.get("step"))


def _stretch(stage: str, start: float, end: float, beside: bool) -> Stretch:
    kind = "from start to end" if beside else "held the request up"
    words = f"{stage}, {kind}: {say.seconds(end - start)} from {say.seconds(start)}"
    return Stretch(start, end, beside, words)


def _in_order(report: Report) -> list[dict[str, Any]]:
    found, start = [], 0.0
    for name, stage in report["stages"].items():
        found.append({"stage": name, "start": start, "seconds": stage["seconds"]})
        start += stage["seconds"]
    return found


def last_moment(report: Report) -> float:
    """The end of the time axis."""
    ends = [span.end for stage in spans(report).values() for span in stage]
    return max([report["total_seconds"], *ends])


Change = tuple[str, str, float, float]


def stage_changes(before: Report, after: Report) -> list[Change]:
    """Seconds of each stage of either, then of the whole."""
    first, second = before["stages"], after["stages"]
    found: list[Change] = []
    for name in dict.fromkeys([*first, *second]):
        both = (stages.get(name, {}).get("seconds", 0.0) for stages in (first, second))
        found.append((name, "var(--bar)", *both))
    return [
        *found,
        ("the whole request", "var(--ink)", before["total_seconds"], after["total_seconds"]),
    ]


def class_changes(before: Report, after: Report) -> list[Change]:
    """Seconds of each class of either."""
    first, second = ({one.name: one for one in classes(report)} for report in (before, after))
    found = []
    for name in dict.fromkeys([*first, *second]):
        both = [many[name].seconds if name in many else 0.0 for many in (first, second)]
        found.append((name, palette.color(name), *both))
    return found
