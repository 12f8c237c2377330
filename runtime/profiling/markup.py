"""HTML and SVG from Python values: whatever is no markup yet is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = {"br", "meta", "line", "rect", "circle", "path", "use", "hr", "link"}


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element; `class_` is `class`, `aria_label` is `aria-label`, None leaves one out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"')
    inside = join(children)
    if name in VOID and not inside:
        return Markup(f"<{' '.join(words)}/>")
    return Markup(f"<{' '.join(words)}>{inside}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """Children after one another; None is nothing, and text is escaped."""
    parts = (child for child in children if child is not None)
    return Markup("".join(p if isinstance(p, Markup) else html.escape(str(p)) for p in parts))


def embedded_json(value: Any) -> Markup:
    """JSON that may stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
