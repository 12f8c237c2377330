"""Tables and plots of README and docs, made from the committed rows: `kinema bench report`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..runtime.errors import KinemaError
from . import plots, rows, tables
from .rows import Row

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
PAGES = ("README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")))
MARK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def report(check: bool = False) -> list[str]:
    """Rewrite every marked table of `PAGES`, and the plots; returns what was written.

    check: raise `KinemaError` where one is out of date, and write nothing.
    """
    found = rows.read()
    changed = [*_pages(found, check), *_plots(found, check)]
    if check and changed:
        raise KinemaError(f"out of date: {', '.join(changed)}; kinema bench report makes them")
    return changed


def _pages(found: Sequence[Row], check: bool) -> Iterator[str]:
    for page in PAGES:
        before = (ROOT / page).read_text()
        after = with_tables(before, found)
        if after != before:
            yield page
            if not check:
                (ROOT / page).write_text(after)


def with_tables(text: str, found: Sequence[Row]) -> str:
    """The text with each marked table made anew; untouched where its results are not there."""

    def table(mark: re.Match[str]) -> str:
        if mark[2] not in tables.NAMES:
            raise KinemaError(f"there is no table {mark[2]!r}; known: {', '.join(tables.NAMES)}")
        made = tables.table(mark[2], found)
        return mark[0] if made is None else f"{mark[1]}{made}\n{mark[3]}"

    return MARK.sub(table, text)


def _plots(found: Sequence[Row], check: bool) -> Iterator[str]:
    """Those that changed."""
    with tempfile.TemporaryDirectory() as folder:
        for drawn in plots.draw(found, Path(folder)):
            there = IMAGES / drawn.name
            made = drawn.read_bytes()
            if not there.is_file() or there.read_bytes() != made:
                yield str(there.relative_to(ROOT))
                if not check:
                    there.write_bytes(made)


def main() -> None:
    """Write all, and say what changed."""
    print("\n".join(f"wrote {name}" for name in report()) or "nothing changed")


if __name__ == "__main__":
    main()
