"""Published scheduler_config.json files, read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UsageError
from .scheduler_formats import FORMATS, Format


def read_config(config: Mapping[str, Any]) -> tuple[Format, dict[str, Any]]:
    """The format of a config's `_class_name` and its options, checked, defaults filled in."""
    name = config.get("_class_name")
    if name not in FORMATS:
        raise UsageError(f"scheduler {name!r} is not known; known: {', '.join(FORMATS)}")
    format_ = FORMATS[name]
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    known = {*format_.options, *format_.unused}
    if unknown := sorted(set(given) - known):
        raise UsageError(
            f"{name} has no option {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    options = {key: given.get(key, default) for key, default in format_.options.items()}
    for option, works in format_.choices.items():
        found = options[option]
        if found not in works and not (found is None and False in works):
            shown = _spoken(repr(value) for value in works)
            raise UsageError(f"{name} with {option}={found!r} is not supported; {shown} works")
    format_.check(options)
    return format_, options


def _spoken(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last
