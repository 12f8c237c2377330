"""Plots of the committed rows as SVG: what each technique brings, and how time grows.

The same rows give the same bytes. A drawing follows the reader's light or dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..runtime.files import whole_or_nothing
from ..runtime.profiling import palette
from ..runtime.profiling import quantities as say
from ..runtime.profiling.drawing import DASHES, decades, marker, ticks
from ..runtime.profiling.markup import Markup, join, tag
from . import rows as committed
from .rows import Row

WIDTH = 860
CHARACTER = 7.5  # pixels of one at 13 pixels of size, on average and rather too many
PANEL = 250  # height of one panel of a scaling plot
AXES = {"tokens": "tokens", "steps": "steps", "batch": "videos at once"}
ABOUT_BARS = (
    "Medians; lines: 20th to 80th percentile; pale: what the technique saves; factors: beside"
)
OWN, PEER = palette.CLASSES["attention"], palette.CLASSES["launch gaps"]
LINES = (PEER, OWN, *(c for c in palette.CLASSES.values() if c not in (OWN, PEER)))
Runner = tuple[str, str]  # who, and in which dtype
STYLE = """
text {{ font: 13px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: {ink} }}
.title {{ font-size: 16px; font-weight: 600 }} .strong {{ font-weight: 600 }}
.quiet {{ fill: {quiet} }}
.page {{ fill: {page} }} .grid {{ stroke: {line} }} .axis {{ stroke: {quiet} }}
.spread {{ stroke: {ink}; stroke-width: 1.5 }} .halo {{ stroke: {page}; stroke-width: 2 }}
"""
STYLE_DARK = """
text {{ fill: {ink} }} .quiet {{ fill: {quiet} }} .page {{ fill: {page} }}
.grid {{ stroke: {line} }} .axis {{ stroke: {quiet} }} .spread {{ stroke: {ink} }}
.halo {{ stroke: {page} }}
"""


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write `waterfall-DEVICE.svg` and `scaling-DEVICE.svg` for each device that has such rows."""
    written = []
    for device in dict.fromkeys(row.device for row in rows):
        mine = [row for row in rows if row.device == device and row.median is not None]
        for kind, drawing in (("waterfall", waterfall(mine)), ("scaling", scaling(mine))):
            if drawing:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{kind}-{committed.slug(device)}.svg"
                with whole_or_nothing(path) as unfinished:
                    unfinished.write_text(drawing)
                written.append(path)
    return written


def waterfall(rows: Sequence[Row]) -> str | None:
    """A bar a technique, each on top of all before it; one device's rows."""
    mine = committed.select(rows, bench="waterfall", quantity="seconds")
    ratios = {
        (row.name, row.runner): row
        for row in committed.select(rows, bench="waterfall", quantity="ratio")
    }
    names = list(dict.fromkeys(row.name for row in mine))
    if not names:
        return None
    top, drawn = 0, []
    for name in names:
        panel, height = _techniques([row for row in mine if row.name == name], ratios, top)
        drawn.append(panel)
        top += height
    title = f"Time of one video, each technique on top of those above it, on {mine[0].device}"
    return _picture(drawn, top, title)


def _techniques(
    rows: Sequence[Row], ratios: dict[tuple[str, str], Row], top: float
) -> tuple[Markup, float]:
    """One waterfall and its height."""
    longest = max(row.p80 or row.value for row in rows)
    left = 44 + CHARACTER * max(len(row.runner) for row in rows)
    scale = (WIDTH - left - 190) / longest
    titles = _titles(f"{rows[0].name}: seconds, each technique on top of those above", rows, top)
    drawn, y, before = [titles], top + 92, None
    for row in rows:
        ratio = ratios.get((row.name, row.runner))
        faster = ratio.median if ratio else rows[0].value / row.value
        drawn.append(_technique(row, before, faster if before else None, left, y, scale))
        y, before = y + 36, row.value
    axis = tag("line", x1=_n(left), x2=_n(left), y1=top + 84, y2=_n(y - 8), class_="axis")
    about = _quiet(f"{ABOUT_BARS} {rows[0].runner}.", x=16, y=_n(y + 16))
    return join([*drawn, axis, about]), y - top + 38


def _technique(
    row: Row, before: float | None, faster: float | None, left: float, y: float, scale: float
) -> Markup:
    """A name, a bar, what the technique saved or cost as a hollow end, the spread, and figures."""
    color = PEER if row.runner.startswith("diffusers") else OWN
    end = left + row.value * scale
    reach = max(end, left + (row.p80 or 0) * scale, left + (before or 0) * scale)
    drawn: list[Markup | None] = [
        tag(
            "text",
            f"+ {row.runner}" if before else row.runner,
            x=_n(left - 10),
            y=y + 15,
            text_anchor="end",
        ),
        tag("rect", x=_n(left), y=y, width=_n(end - left), height=22, fill=color),
    ]
    if before and before > row.value:
        hollow = {"fill": color, "fill_opacity": 0.16, "height": 22}
        drawn.append(tag("rect", x=_n(end), y=y, width=_n((before - row.value) * scale), **hollow))
    drawn.append(_spread(row, lambda value: left + value * scale, y + 11))
    words = [tag("tspan", say.seconds(row.value), class_="strong")]
    if faster:
        words.append(tag("tspan", say.times(faster), dx=9, class_="quiet"))
    drawn.append(tag("text", *words, x=_n(reach + 12), y=y + 15))
    return tag("g", tag("title", _told(row)), *drawn)


def _spread(row: Row, place: Callable[[float], float], y: float) -> Markup | None:
    if row.percentiles is None:
        return None
    low, high = (_n(place(value)) for value in row.percentiles)
    ends = [tag("line", x1=x, x2=x, y1=_n(y - 4), y2=_n(y + 4)) for x in (low, high)]
    across = tag("line", x1=low, x2=high, y1=_n(y), y2=_n(y))
    return tag("g", across, *ends, class_="spread")


def scaling(rows: Sequence[Row]) -> str | None:
    """Time against tokens, steps and videos at once, a line a runner; one device's rows."""
    mine = committed.select(rows, bench="scaling", quantity="seconds")
    panels = [(axis, [row for row in mine if row.name == axis]) for axis in AXES]
    panels = [(axis, found) for axis, found in panels if found]
    if not panels:
        return None
    runners = list(dict.fromkeys((row.runner, row.dtype) for row in mine))
    tall = PANEL + 146
    drawn = [_growth(axis, found, runners, i * tall) for i, (axis, found) in enumerate(panels)]
    title = f"Seconds against {', '.join(AXES[axis] for axis, _ in panels)}, on {mine[0].device}"
    return _picture(drawn, len(panels) * tall, title)


def _growth(axis: str, rows: Sequence[Row], runners: Sequence[Runner], top: float) -> Markup:
    """One panel: axes from 0, or logarithmic where sizes span more than a factor of 20."""
    sizes = sorted({float(row.sizes[axis]) for row in rows})
    named = max(len(" ".join(runner)) for runner in runners)
    left, right, low, high = 74, WIDTH - 56 - CHARACTER * named, top + 90 + PANEL, top + 90
    wide = sizes[0] > 0 and sizes[-1] / sizes[0] > 20
    across = Scale.over(sizes, left, right, wide)
    if not wide:
        across = replace(across, ticks=[0.0, sizes[-1]])
    up = Scale.over([row.p80 or row.value for row in rows], low, high, wide)
    title = f"Seconds against {AXES[axis]}{', logarithmic' * wide}"
    drawn = [_titles(title, rows, top)]
    for tick in up.ticks:
        y, words = _n(up.place(tick)), say.seconds(tick)
        drawn.append(
            tag(
                "line",
                x1=_n(left),
                x2=_n(right),
                y1=y,
                y2=y,
                class_="grid" if tick != up.ticks[0] else "axis",
            )
        )
        drawn.append(_quiet(words, x=left - 8, y=y, dy=4.5, text_anchor="end"))
    for size in across.apart(sizes):
        x = _n(across.place(size))
        drawn.append(tag("line", x1=x, x2=x, y1=low, y2=low + 5, class_="axis"))
        drawn.append(_quiet(f"{size:,.0f}", x=x, y=low + 21, text_anchor="middle"))
    return join([*drawn, *_lines(axis, rows, runners, across, up)])


def _lines(
    axis: str, rows: Sequence[Row], runners: Sequence[Runner], across: Scale, up: Scale
) -> list[Markup]:
    """A line, its markers and its name at the end, for each runner that has rows."""
    drawn, ends = [], []
    for index, (runner, dtype) in enumerate(runners):
        mine = committed.select(rows, runner=runner, dtype=dtype)
        if not mine:
            continue
        color, dash = LINES[index % len(LINES)], DASHES[index // len(LINES) % len(DASHES)]
        mine.sort(key=lambda row: float(row.sizes[axis]))
        points = [(across.place(float(row.sizes[axis])), up.place(row.value)) for row in mine]
        path = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        line = {"stroke": color, "stroke_width": 2, "stroke_dasharray": dash, "fill": "none"}
        drawn.append(tag("path", d=path, **line))
        for (x, y), row in zip(points, mine, strict=True):
            place = {"transform": f"translate({_n(x)} {_n(y)})", "class_": "halo"}
            drawn.append(tag("g", tag("title", _told(row)), marker(index, color), **place))
        ends.append((points[-1][1], f"{runner} {dtype}", color, index))
    return [*drawn, *_names(ends, across.end + 26)]


def _names(ends: Sequence[tuple[float, str, str, int]], x: float) -> list[Markup]:
    """The lines' names, moved down as far as they need to stand apart."""
    drawn, below = [], 0.0
    for y, name, color, index in sorted(ends):
        below = max(y, below + 20)
        mark = tag("g", marker(index, color), transform=f"translate({_n(x)} {_n(below)})")
        drawn += [mark, tag("text", name, x=_n(x + 14), y=_n(below), dy=4.5)]
    return drawn


@dataclass(frozen=True)
class Scale:
    """Values to pixels, from 0 or by decades."""

    start: float
    end: float
    ticks: list[float]
    logarithmic: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, logarithmic: bool) -> Scale:
        marks = decades(min(values), max(values)) if logarithmic else ticks(max(values))
        return cls(start, end, marks, logarithmic)

    def place(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        if self.logarithmic:
            value, first, last = map(math.log10, (value, first, last))
        return self.start + (value - first) / (last - first) * (self.end - self.start)

    def apart(self, values: Sequence[float]) -> list[float]:
        """Those values whose labels have room beside each other; the largest always."""
        kept: list[float] = []
        for value in reversed(values):
            if not kept or abs(self.place(kept[-1]) - self.place(value)) > 56:
                kept.append(value)
        return kept


def _titles(title: str, rows: Sequence[Row], top: float) -> Markup:
    """What a panel shows, and below it where, with what and how it was measured."""
    shapes = list(dict.fromkeys(row.shapes for row in rows))
    told = [rows[0].device, shapes[0] if len(shapes) == 1 else ""]
    lines = [
        tag("text", title, x=16, y=top + 28, class_="title"),
        _quiet(" · ".join(filter(None, told)), x=16, y=top + 48),
        _quiet(rows[0].versions.replace("; ", ", "), x=16, y=top + 66),
    ]
    return join(lines)


def _quiet(words: str, **place: object) -> Markup:
    return tag("text", words, class_="quiet", **place)


def _told(row: Row) -> str:
    """A row as the title that a pointer finds."""
    spread = ""
    if row.percentiles is not None:
        spread = f", 20th to 80th percentile {' to '.join(map(say.seconds, row.percentiles))}"
    return f"{row.runner}, {row.dtype}, {row.shapes}: {say.seconds(row.value)}{spread}"


def _picture(drawn: Sequence[Markup], height: float, title: str) -> str:
    """The file: a page of its own color, light or dark as the reader's."""
    style = STYLE.format(**palette.LIGHT) + (
        f"@media (prefers-color-scheme: dark) {{{STYLE_DARK.format(**palette.DARK)}}}"
    )
    page = tag("rect", width="100%", height="100%", rx=8, class_="page")
    size = {"viewBox": f"0 0 {WIDTH} {_n(height)}", "width": WIDTH, "height": _n(height)}
    words = {"role": "img", "aria_label": title, "xmlns": "http://www.w3.org/2000/svg"}
    inside = [tag("title", title), tag("style", Markup(style)), page, *drawn]
    return tag("svg", *inside, **size, **words) + "\n"


def _n(value: float) -> str:
    return f"{value:.1f}"
