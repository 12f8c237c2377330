"""What the page of a report is put together from: the frame, tables, legends, cards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import palette
from .classes import ATTENTION
from .drawing import marker
from .markup import Markup, embedded_json, join, tag

ASSETS = Path(__file__).parent.parent / "assets" / "profile"


def document(title: str, body: Iterable[object], data: dict[str, Any]) -> str:
    """A whole page that needs no other file; `data` is named JSON that the page carries along."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(_style())),
    ]
    carried = [
        tag("script", embedded_json(value), type="application/json", id=name)
        for name, value in data.items()
    ]
    script = tag("script", Markup((ASSETS / "page.js").read_text()))
    inside = tag("body", tag("main", *body), *carried, script)
    return f"<!doctype html>\n{tag('html', tag('head', *head), inside, lang='en')}\n"


def _style() -> str:
    """The palette as variables, light or dark as the reader's, then the rules."""
    light, dark = (
        "".join(f"--{name}:{color};" for name, color in colors.items())
        for colors in (palette.LIGHT, palette.DARK)
    )
    focus = f"--focus:{palette.CLASSES[ATTENTION]};"
    variables = f":root{{{light}{focus}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    variables += f"@media print{{:root{{{light}}}}}"
    return variables + (ASSETS / "page.css").read_text()


def section(name: str, title: str, *inside: object) -> Markup:
    return tag("section", tag("h2", title), *inside, id=name, aria_label=title)


def table(
    caption: str,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    foot: Sequence[object] | None = None,
    kind: str | None = None,
) -> Markup:
    """A table whose first column names the row; it scrolls by itself where the page is narrow."""
    parts = [
        tag("caption", caption),
        tag("thead", tag("tr", *(_head(name) for name in head))),
        tag("tbody", *(_row(row) for row in rows)),
        tag("tfoot", _row(foot)) if foot else None,
    ]
    inside = tag("table", *parts, class_=kind)
    return tag("div", inside, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _row(cells: Sequence[object]) -> Markup:
    first, *others = cells
    named = tag("th", first, scope="row")
    return tag("tr", named, *(cell if _is_cell(cell) else tag("td", cell) for cell in others))


def _head(cell: object) -> Markup:
    if isinstance(cell, Markup) and cell.startswith("<th"):
        return cell
    return tag("th", cell, scope="col")


def _is_cell(cell: object) -> bool:
    return isinstance(cell, Markup) and cell.startswith("<td")


def drawn(inside: Markup) -> Markup:
    """A cell that holds a bar or a lane."""
    return tag("td", inside, class_="bar")


def judged(words: str, better: bool | None) -> Markup:
    """A cell whose change is for the better or the worse; None where it is neither."""
    kind = None if better is None else "good" if better else "bad"
    return tag("td", words, class_=kind)


def lines(entries: Iterable[tuple[str, str | None]]) -> Markup:
    """Names of lines with their dashes."""
    found = []
    for name, dashes in entries:
        stroke = {"stroke": "currentColor", "stroke_width": 2, "stroke_dasharray": dashes}
        line = tag("line", x1=0, x2=28, y1=7, y2=7, **stroke)
        found.append(tag("li", tag("svg", line, class_="long", aria_hidden="true"), name))
    return tag("ul", *found, class_="legend")


def legend(colors: dict[str, str], floor: bool = False, shapes: bool = False) -> Markup:
    """Names with their colors; a press singles one out, in every chart."""
    entries = []
    for index, (name, color) in enumerate(colors.items()):
        mark = marker(index if shapes else 1, color, transform="translate(7 7)")
        picture = tag("svg", mark, aria_hidden="true")
        pressed = {"type": "button", "value": name, "aria_pressed": "false"}
        entries.append(tag("li", tag("button", picture, name, **pressed)))
    if floor:
        line = tag("line", x1=0, x2=14, y1=7, y2=7, stroke="currentColor", stroke_width=2)
        entries.append(tag("li", tag("svg", line, aria_hidden="true"), "floor of the step"))
    return tag("ul", *entries, class_="legend")


def swatch(name: str, color: str) -> Markup:
    """A name behind its color."""
    return join([tag("span", class_="swatch", style=f"background:{color}"), name])


def cards(entries: Iterable[tuple[str, object, object]]) -> Markup:
    """Figures with a title above and a remark below."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", title), tag("dd", value, tag("small", remark) if remark else None))
            for title, value, remark in entries
        ),
        class_="cards",
    )


def facts(entries: Iterable[tuple[str, object]]) -> Markup:
    """Names and values beside each other."""
    return tag(
        "dl",
        *(join([tag("dt", name), tag("dd", value)]) for name, value in entries),
        class_="about",
    )
