"""The charts of a report as inline SVG, in per cent of whatever width the page has.

Text keeps its size while everything else stretches, so one drawing serves a telephone and a desk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import quantities as say
from .drawing import DASHES, marker, ticks
from .markup import Markup, join, tag


@dataclass(frozen=True)
class Stretch:
    """A stretch of one stage; `beside` says that others went on meanwhile."""

    start: float
    end: float
    beside: bool = False
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """One stacked bar: seconds by class, bottom to top, and the floor of their sum."""

    title: str
    parts: Sequence[tuple[str, float]]
    floor: float | None = None

    @property
    def total(self) -> float:
        return sum(seconds for _, seconds in self.parts)


@dataclass(frozen=True)
class Point:
    """One class on the roofline; `roof` is what the device could do at this intensity."""

    name: str
    intensity: float
    rate: float
    roof: float | None
    color: str


@dataclass(frozen=True)
class Ceilings:
    """Measured limits: bytes a second by what was copied, and FLOP/s by dtype."""

    slopes: dict[str, float] = field(default_factory=dict)
    products: dict[str, float] = field(default_factory=dict)

    @property
    def tops(self) -> list[tuple[str, float]]:
        """Matrix products by dtype, the fastest first."""
        return sorted(self.products.items(), key=lambda top: -top[1])


def svg(*children: object, label: str, **attributes: object) -> Markup:
    return tag("svg", *children, role="img", aria_label=label, **attributes)


def percent(part: float) -> str:
    return f"{100 * part:.3f}%"


def lane(spans: Sequence[Stretch], total: float, label: str, color: str = "var(--bar)") -> Markup:
    """One stage's stretches on the line from 0 to the total; pale where it ran beside others."""
    return svg(_rule(), *(_stretch(span, total, color) for span in spans), label=label)


def _stretch(span: Stretch, total: float, color: str) -> Markup:
    """Neighbours are told apart by a line of the page's color, where there is room for one."""
    wide = max(span.end - span.start, 0) / total
    edge = "var(--page)" if wide > 0.01 and not span.beside else color
    style = f"fill:{color};stroke:{edge}"
    style += ";fill-opacity:.2;stroke-opacity:.5" if span.beside else ""
    place = {"x": percent(span.start / total), "width": percent(wide), "y": "10%", "height": "80%"}
    return tag("rect", tag("title", span.title), **place, style=style)


def pair(before: float, after: float, color: str, label: str) -> Markup:
    """Two bars on one scale, the first one pale above the second."""
    shapes = [
        tag("rect", width=percent(width), y=y, height="44%", rx=2, style=style)
        for width, y, style in (
            (before, "0%", f"fill:{color};fill-opacity:.4"),
            (after, "56%", f"fill:{color}"),
        )
    ]
    return svg(*shapes, label=label)


def time_axis(end: float) -> Markup:
    """Round seconds above the lanes."""
    drawn = []
    for second in ticks(end, about=4):
        if second <= end:
            place = "start" if not second else "end" if second > 0.93 * end else "middle"
            words = say.seconds(second)
            kind = "wide" if place == "middle" else None
            at = {"x": percent(second / end), "y": 15, "text_anchor": place, "class_": kind}
            drawn.append(tag("text", words, **at))
    return svg(*drawn, label=f"seconds from 0 to {say.digits(end)}")


def bar(share: float, color: str, label: str, tick: float | None = None) -> Markup:
    """A bar in a table's cell, with a mark where the comparison ends."""
    mark = tick is not None and tag(
        "line", x1=percent(tick), x2=percent(tick), y1="-15%", y2="115%", class_="floor"
    )
    filled = tag("rect", width=percent(min(share, 1)), height="100%", rx=2, style=f"fill:{color}")
    return svg(filled, mark or None, label=label)


def _rule() -> Markup:
    return tag("line", x1="0%", x2="100%", y1="50%", y2="50%", style="stroke:var(--line)")


def stacked(bars: Sequence[Bar], colors: dict[str, str], label: str) -> Markup:
    """Bars over a common axis of seconds, a line across each at its floor."""
    levels = ticks(max([*(b.total for b in bars), *(b.floor or 0 for b in bars)], default=0))
    slot = 1 / max(len(bars), 1)
    every = max(1, math.ceil(len(bars) / 12))
    drawn = [_levels(levels)]
    for index, one in enumerate(bars):
        drawn.append(_stack(one, (index + 0.1) * slot, 0.8 * slot, levels[-1], colors))
        if index % every == 0:
            middle = percent((index + 0.5) * slot)
            words = tag("text", index + 1, x=middle, y="100%", dy=18, text_anchor="middle")
            drawn.append(words)
    drawn.append(tag("text", "step", x="50%", y="100%", dy=36, text_anchor="middle"))
    return tag("div", svg(*drawn, label=label), class_="plot steps")


def _levels(levels: Sequence[float]) -> Markup:
    lines = []
    for level in levels:
        y = percent(1 - level / levels[-1])
        kind = "grid" if level else "axis"
        lines.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_=kind))
        lines.append(
            tag("text", say.seconds(level), x=0, dx=-8, y=y, dy="0.35em", text_anchor="end")
        )
    return join(lines)


def _stack(one: Bar, x: float, width: float, top: float, colors: dict[str, str]) -> Markup:
    drawn, below = [], 0.0
    for name, seconds in one.parts:
        below += seconds
        words = f"{one.title}, {name}: {say.seconds(seconds)} of {say.seconds(one.total)}"
        place = {"x": percent(x), "width": percent(width), "y": percent(1 - below / top)}
        drawn.append(
            tag(
                "rect",
                tag("title", words),
                **place,
                height=percent(seconds / top),
                style=f"fill:{colors[name]}",
                data_class=name,
            )
        )
    if one.floor:
        y = percent(1 - one.floor / top)
        ends = {"x1": percent(x), "x2": percent(x + width)}
        drawn.append(tag("line", **ends, y1=y, y2=y, class_="floor"))
    return tag("g", *drawn, class_="step")


def roofline(points: Sequence[Point], ceilings: Ceilings, label: str) -> Markup:
    """FLOP/s against FLOPs per byte, both logarithmic, below what the device was measured at."""
    frame = Frame.around(points, ceilings)
    shapes = [_place(frame, point, index) for index, point in enumerate(points)]
    drawn = [_grid(frame), _roofs(frame, ceilings), *shapes]
    return tag("div", svg(*drawn, label=label), class_="plot roofline")


@dataclass(frozen=True)
class Frame:
    """The decades that a logarithmic plot shows."""

    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, points: Sequence[Point], ceilings: Ceilings) -> Frame:
        """Whole decades around every point, every ceiling and the ridge between them."""
        across = [p.intensity for p in points]
        up = [*(p.rate for p in points), *ceilings.products.values()]
        for bandwidth in ceilings.slopes.values():
            across += [peak / bandwidth for peak in ceilings.products.values()]
        sides = []
        for values in (across or [1.0], up or [1.0]):
            sides += [math.floor(math.log10(min(values)) - 0.15)]
            sides += [math.ceil(math.log10(max(values)) + 0.15)]
        return cls(*map(float, sides))

    def x(self, value: float) -> float:
        return (math.log10(value) - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return 1 - (math.log10(value) - self.bottom) / (self.top - self.bottom)


def _grid(frame: Frame) -> Markup:
    drawn = []
    for power in range(int(frame.left), int(frame.right) + 1):
        x = percent(frame.x(10.0**power))
        drawn.append(tag("line", x1=x, x2=x, y1="0%", y2="100%", class_="grid"))
        words = say.plain_power(power)
        drawn.append(tag("text", words, x=x, y="100%", dy=18, text_anchor="middle"))
    for power in range(int(frame.bottom), int(frame.top) + 1):
        y = percent(frame.y(10.0**power))
        drawn.append(tag("line", x1="0%", x2="100%", y1=y, y2=y, class_="grid"))
        words = say.whole(10.0**power)
        drawn.append(tag("text", words, x=0, dx=-8, y=y, dy="0.35em", text_anchor="end"))
    drawn.append(tag("text", "FLOPs per byte", x="50%", y="100%", dy=36, text_anchor="middle"))
    drawn.append(tag("text", "FLOP/s", x=0, y=0, dx=-8, dy=-12, text_anchor="end"))
    return join(drawn)


def _roofs(frame: Frame, ceilings: Ceilings) -> Markup:
    """The slope that memory bounds and, from where each meets it, the tops."""
    drawn, fastest = [], max(ceilings.slopes.values(), default=math.inf)
    for index, (_, peak) in enumerate(ceilings.tops):
        start = max(10**frame.left, peak / fastest)
        y = percent(frame.y(peak))
        ends = {"x1": percent(frame.x(start)), "x2": "100%", "y1": y, "y2": y}
        dashes = DASHES[index % len(DASHES)]
        drawn.append(tag("line", **ends, class_="roof", stroke_dasharray=dashes))
    highest = max(ceilings.products.values(), default=10**frame.top)
    for index, (name, bandwidth) in enumerate(ceilings.slopes.items()):
        drawn.append(_slope(frame, name, bandwidth, highest / bandwidth, DASHES[index]))
    for words, y in _names_of_tops(frame, ceilings.tops):
        place = {"x": "100%", "y": percent(y), "dy": -6, "text_anchor": "end"}
        drawn.append(tag("text", words, **place, class_="label halo"))
    return join(drawn)


def _names_of_tops(frame: Frame, tops: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Words and height of each top; tops too near to each other for two lines share one."""
    found: list[tuple[str, float]] = []
    for name, peak in tops:
        y = frame.y(peak)
        if found and y - found[-1][1] < 0.06:
            found[-1] = (f"{found[-1][0]}, {name}", found[-1][1])
        else:
            found.append((name, y))
    return found


def _slope(frame: Frame, name: str, bandwidth: float, ridge: float, dashes: str | None) -> Markup:
    """What memory allows, from where it enters the frame to the highest top."""
    x1 = max(10**frame.left, 10**frame.bottom / bandwidth)
    x2 = max(ridge, x1)
    ends = {"x1": percent(frame.x(x1)), "y1": percent(frame.y(x1 * bandwidth))}
    ends |= {"x2": percent(frame.x(x2)), "y2": percent(frame.y(x2 * bandwidth))}
    line = tag("line", **ends, class_="roof", stroke_dasharray=dashes)
    middle = math.sqrt(x1 * x2)
    x, y = percent(frame.x(middle)), percent(frame.y(middle * bandwidth))
    place = {"x": x, "y": y, "dx": -8, "dy": -6, "text_anchor": "end"}
    return join([line, tag("text", name, **place, class_="label halo") if not dashes else None])


def _place(frame: Frame, point: Point, shape: int) -> Markup:
    x, y = percent(frame.x(point.intensity)), percent(frame.y(point.rate))
    words = (
        f"{point.name}: {say.quantity(point.rate, 'FLOP/s')} at"
        f" {say.digits(point.intensity)} FLOPs per byte"
    )
    up = None
    if point.roof and point.roof > point.rate:
        y2 = percent(frame.y(point.roof))
        up = tag("line", x1=x, x2=x, y1=y, y2=y2, class_="to-roof", style=f"stroke:{point.color}")
    late = frame.x(point.intensity) > 0.7
    side = {"dx": -12 if late else 12, "text_anchor": "end" if late else "start"}
    name = tag("text", point.name, x=x, y=y, dy="0.35em", **side, class_="label halo wide")
    mark = marker(shape, point.color, stroke="var(--page)", stroke_width=1.5)
    mark = tag("svg", tag("title", words), mark, x=x, y=y, overflow="visible", class_="mark")
    return tag("g", up, mark, name, data_class=point.name)
