"""What the command line says: progress and notes on standard error, results on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..sessions.progress import Progress


@contextmanager
def progress(announcement: str) -> Iterator[Callable[[Progress], None]]:
    """Shows on standard error what is made, and a bar where that is a terminal.

    Elsewhere the announcement waits for the first sign of work, so that a failure before it is one
    line.
    """
    if sys.stderr.isatty():
        say(announcement)
        with bar_of_parts() as show:
            yield show
        return
    unsaid = [announcement]

    def say_once(event: Progress) -> None:
        while unsaid:
            say(unsaid.pop())

    yield say_once


@contextmanager
def bar_of_parts() -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        "{task.description:<8}",
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks = {"load": bar.add_task("load", total=None)}

        def show(event: Progress) -> None:
            bar.update(tasks["load"], completed=1, total=1)
            if event.stage not in tasks:
                tasks[event.stage] = bar.add_task(event.stage, total=event.total)
            bar.update(tasks[event.stage], completed=event.index, total=event.total)

        yield show


@contextmanager
def steps(announcement: str) -> Iterator[Callable[[str, int, int], None]]:
    """Shows on standard error which step of how many is under way, as a bar on a terminal."""
    if not sys.stderr.isatty():
        yield lambda doing, done, total: None
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (rich.BarColumn(), rich.MofNCompleteColumn(), "{task.description}")
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(announcement, total=None)

        def show(doing: str, done: int, total: int) -> None:
            bar.update(task, description=doing, completed=done, total=total)

        yield show


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    plain = isinstance(value, str) and value and value.isprintable()
    return value if plain else json.dumps(value)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def say(line: str) -> None:
    print(f"kinema: {line}", file=sys.stderr)


def fail(kind: str, message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split())
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": line}}))
    else:
        say(line)
    return code
