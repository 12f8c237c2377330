"""The tables of a report's page: stages, classes, memory, what-if, and what changed."""

from __future__ import annotations

from collections.abc import Sequence

from . import page_facts as facts
from . import palette
from . import quantities as say
from .markup import Markup, join, tag
from .page_charts import bar, lane, pair, time_axis
from .page_facts import Figures, Report
from .page_parts import drawn, judged, swatch, table
from .report import NUMBERS

NEUTRAL = "var(--bar)"
COUNTED = ("count", "time", "FLOPs", "bytes", "FLOP/s", "B/s", "floor", "over floor")


def stages(report: Report) -> Markup:
    """A lane a stage on the time of the first call, its seconds and share, and those when warm."""
    total, end = report["total_seconds"], facts.last_moment(report)
    spans, again = facts.spans(report), (report.get("steady") or {}).get("stages")
    rows = []
    for name, stage in report["stages"].items():
        label = f"{name}: {say.seconds(stage['seconds'])} of {say.seconds(total)}"
        line = drawn(lane(spans.get(name, []), end, label))
        row = [name, line, say.seconds(stage["seconds"]), _wide(say.share(stage["seconds"], total))]
        rows.append([*row, say.seconds(again.get(name))] if again else row)
    whole = sum(stage["seconds"] for stage in report["stages"].values())
    foot = ["all stages", "", say.seconds(whole), _wide(say.share(whole, total))]
    axis = tag("th", time_axis(end), scope="col", class_="axis-of-time")
    head = ["stage", axis, "first call" if again else "time", _wide("share", "th")]
    if again:
        head, foot = [*head, "again"], [*foot, say.seconds(report["steady"]["total_seconds"])]
    caption = (
        "Full where a stage held the request up, which is what its time counts;"
        " pale where it went on beside another, or waited for one inside it."
    )
    return table(caption, head, rows, foot, kind="lanes")


def _wide(words: str, kind: str = "td") -> Markup:
    """A cell for which a narrow page has no room."""
    return tag(kind, words, class_="wide", scope="col" if kind == "th" else None)


def operations(report: Report) -> Markup:
    """Each class's time and work, what it reached, its floor and how far above it is."""
    found = facts.classes(report)
    whole = facts.total_of(found)
    head = ("class", "share", *COUNTED)
    rows = [
        (swatch(one.name, one.color), say.share(one.seconds, whole.seconds), *_figures(one))
        for one in found
    ]
    foot = ("all", say.share(whole.seconds, whole.seconds), *_figures(whole))
    return table("Operation classes, summed over all steps", head, rows, foot)


def _figures(one: facts.Class) -> tuple[str, ...]:
    return (
        f"{one.count:,.0f}",
        say.seconds(one.seconds),
        say.quantity(one.flops or None, "FLOP"),
        say.size(one.bytes or None),
        say.quantity(one.rate, "FLOP/s"),
        say.quantity(one.traffic, "B/s"),
        say.seconds(one.floor_seconds or None),
        say.times(one.over_floor),
    )


def operators(report: Report) -> Markup | None:
    """Single operators, the longest first."""
    found = report.get("operations")
    if not found:
        return None
    rows = []
    for one in found:
        title = swatch(one["name"], palette.color(one["class"]))
        figures = _figures(facts.Class(**{k: one[k] for k in NUMBERS}, name=one["name"]))
        rows.append((title, tag("td", one["class"], class_="words"), *figures))
    kind = tag("th", "class", scope="col", class_="words")
    return table("Operators, summed over all steps", ("operator", kind, *COUNTED), rows)


def memory(report: Report) -> Markup | None:
    """The peak of each stage as a bar."""
    peaks = {
        name: stage["peak_memory_bytes"]
        for name, stage in report["stages"].items()
        if stage.get("peak_memory_bytes")
    }
    if not peaks:
        return None
    most = max(peaks.values())
    rows = [
        (name, drawn(bar(peak / most, NEUTRAL, f"{name}: {say.size(peak)}")), say.size(peak))
        for name, peak in peaks.items()
    ]
    return table("Peak memory of each stage", ("stage", "", "peak"), rows, kind="bars")


def what_if(report: Report) -> Markup | None:
    """What the request would take, beside what it took."""
    total, found = report["total_seconds"], report.get("what_if")
    if not found:
        return None
    most = max(total, *(one["seconds"] for one in found))
    rows = []
    for one in found:
        name, seconds = one["name"], one["seconds"]
        label = f"{name}: {say.seconds(seconds)} instead of {say.seconds(total)}"
        line = drawn(bar(seconds / most, NEUTRAL, label, tick=total / most))
        cell = judged(say.change(total, seconds), _better(total, seconds))
        note = tag("small", one["note"]) if one.get("note") else None
        rows.append((join([name, note]), line, say.seconds(seconds), cell))
    head = ("if", "the line is what it took", "time", "change")
    return table("What the request would take", head, rows, kind="bars")


def glance(names: Sequence[str], before: Figures, after: Figures) -> Markup:
    """The few numbers of two reports beside each other."""
    kinds = (
        ("the whole request", "total", say.seconds),
        ("again, warm", "again", say.seconds),
        ("a step, the median", "step", say.seconds),
        ("steps over floor", "over_floor", say.times),
        ("peak memory", "peak", say.size),
    )
    rows = []
    for title, field, words in kinds:
        first, second = getattr(before, field), getattr(after, field)
        if first is None and second is None:
            continue
        change, better = say.ABSENT, None
        if first is not None and second is not None:
            change, better = say.change(first, second), _better(first, second)
        rows.append((title, words(first), words(second), judged(change, better)))
    return table("Less is better in each", ("", *names, "change"), rows, kind="bars")


def _better(before: float, after: float) -> bool | None:
    """Whether a time fell; None where it hardly moved."""
    return None if not before or abs(after / before - 1) < 0.0005 else after < before


def changed(
    caption: str, names: Sequence[str], rows: Sequence[tuple[object, str, float, float]]
) -> Markup:
    """Seconds before and after as two bars on one scale; rows of title, color, before, after."""
    most = max([1e-12, *(max(before, after) for _, _, before, after in rows)])
    cells = []
    for title, color, before, after in rows:
        label = f"{say.seconds(before)} before, {say.seconds(after)} after"
        line = tag("td", pair(before / most, after / most, color, label), class_="bar wide")
        change = judged(say.change(before, after), _better(before, after))
        moved = _wide(say.signed_seconds(after - before))
        cells.append((title, line, say.seconds(before), say.seconds(after), moved, change))
    moved = _wide("difference", "th")
    line = _wide(f"above {names[0]}, below {names[1]}", "th")
    head = ("", line, *names, moved, "change")
    return table(caption, head, cells, kind="bars")
