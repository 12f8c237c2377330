"""A report as text for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from . import quantities as say
from .classes import COPIES, ELEMENTWISE
from .report import classes_of

WIDTH = 80
SHORT = {ELEMENTWISE: "elementwise"}  # where a column is narrow
NONE = "-"


def told(report: Mapping[str, Any]) -> str:
    """Stages, classes of operations, ceilings and predictions."""
    parts = [_head(report), _stages(report), _steps(report), _classes(report)]
    parts += [_ceilings(report), _what_if(report), _remarks(report)]
    return "\n\n".join(part for part in parts if part)


def told_of_two(compared: Mapping[str, Any]) -> str:
    """What `compare` found."""
    parts = []
    if compared["refused"]:
        parts.append(_filled(f"These do not compare: {compared['refused']}. Side by side:"))
    head = ("", "before", "after", "change")
    total = [("the whole request", *_change(compared["total"]))]
    stages = [(name, *_change(pair)) for name, pair in compared["stages"].items()]
    classes = [(name, *_change(pair)) for name, pair in compared["classes"].items()]
    parts.append(_table([head, *total]))
    parts.append(_table([("stage", *head[1:]), *stages]))
    parts.append(_table([("class, all steps", *head[1:]), *classes]))
    if compared["differs"]:
        parts.append("\n".join(_filled(f"not the same: {line}") for line in compared["differs"]))
    return "\n\n".join(parts)


def _head(report: Mapping[str, Any]) -> str:
    lines = [f"{_seconds(report['total_seconds'])} on {report['device']['name']}"]
    if plan := report.get("plan"):
        lines.append(
            f"{plan['num_frames']} frames {plan['width']}x{plan['height']},"
            f" {plan['num_inference_steps']} steps, {plan['dtype']}, {plan['executor']}"
        )
    if steady := report.get("steady"):
        lines.append(f"again, when all is open: {_seconds(steady['total_seconds'])}")
    return "\n".join(_filled(line) for line in lines)


def _stages(report: Mapping[str, Any]) -> str:
    total, warm = report["total_seconds"], (report.get("steady") or {}).get("stages", {})
    rows = [("stage", "first call", "share", "when warm", "peak memory")]
    for name, stage in report["stages"].items():
        seconds, peak = stage["seconds"], stage.get("peak_memory_bytes")
        again = _seconds(warm[name]) if name in warm else NONE
        share = _plain(say.share(seconds, total))
        rows.append((name, _seconds(seconds), share, again, _size(peak)))
    return _table(rows)


def _steps(report: Mapping[str, Any]) -> str:
    seconds = sorted(step["seconds"] for step in report["steps"])
    if not seconds:
        return ""
    middle = seconds[len(seconds) // 2]
    return (
        f"{len(seconds)} steps of {_seconds(middle)} in the middle,"
        f" {_seconds(seconds[0])} to {_seconds(seconds[-1])}; in all of them:"
    )


def _classes(report: Mapping[str, Any]) -> str:
    found = classes_of(dict(report))
    whole = sum(one["seconds"] for one in found.values())
    head = ("class", "count", "time", "share", "FLOPs", "FLOP/s", "B/s", "floor", "ratio")
    rows: list[tuple[str, ...]] = [head]
    for name, one in found.items():
        seconds, floor = one["seconds"], one["floor_seconds"]
        rows.append(
            (
                SHORT.get(name, name),
                f"{one['count']:,.0f}",
                _seconds(seconds),
                _plain(say.share(seconds, whole)),
                _number(one["flops"]),
                _number(one["flops"] / seconds if seconds else 0),
                _number(one["bytes"] / seconds if seconds else 0),
                _seconds(floor) if floor else NONE,
                f"{seconds / floor:.1f}x" if floor else NONE,
            )
        )
    return _table(rows) if report["steps"] else ""


def _ceilings(report: Mapping[str, Any]) -> str:
    ceilings = report["device"].get("ceilings")
    if not ceilings:
        return ""
    products = ceilings["matmul_flops_per_second"].items()
    rates = ", ".join(f"{name} {_number(rate)}FLOP/s" for name, rate in products)
    return _filled(
        f"This device was measured at: {COPIES} {_number(ceilings['copy_bytes_per_second'])}B/s;"
        f" products {rates}; a launch every {_seconds(ceilings['launch_seconds'])}."
    )


def _what_if(report: Mapping[str, Any]) -> str:
    total = report["total_seconds"]
    rows = [("predicted, if", "the request", "change")]
    for one in report.get("what_if") or ():
        change = _plain(say.change(total, one["seconds"]))
        rows.append((one["name"], _seconds(one["seconds"]), change))
    return _table(rows) if len(rows) > 1 else ""


def _remarks(report: Mapping[str, Any]) -> str:
    lines: list[str] = list(report.get("notes") or ())
    if overhead := report.get("overhead"):
        lines.append(f"looking inside took {overhead['attribution']}")
    if memory := report.get("memory"):
        lines.append(f"memory: {memory['how']}")
    return "\n".join(_filled(line) for line in lines)


def _change(pair: Mapping[str, Any]) -> tuple[str, str, str]:
    change = NONE
    if pair["change"] is not None:
        change = _plain(say.change(pair["before"], pair["after"]))
    return _seconds(pair["before"]), _seconds(pair["after"]), change


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as columns, the first to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [word.rjust(width) for word, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _filled(line: str) -> str:
    return fill(line, WIDTH, break_long_words=False, break_on_hyphens=False)


def _seconds(value: float) -> str:
    return _plain(say.seconds(value))


def _size(value: float | None) -> str:
    return _plain(say.size(value)) if value else NONE


def _number(value: float) -> str:
    """12.3 G"""
    return _plain(say.quantity(value, "")) if value else NONE


def _plain(text: str) -> str:
    return text.replace(say.THIN, " ").replace("\N{MINUS SIGN}", "-")
