"""Files written whole or not at all, and where what can be made again is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from .errors import KinemaError


def beside(path: Path) -> Path:
    """An unused hidden name in the same folder."""
    return path.with_name(f".kinema-{uuid4().hex}.part")


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to it at the end, removed if the body fails.

    Raises `KinemaError` for a disk that is full or a folder that cannot be written.
    """
    unfinished = beside(path)
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError as error:
        raise KinemaError(f"cannot write {str(path)!r}: {reason_of(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def reason_of(error: Exception) -> str:
    """What an error says, without its number, fit for the end of a line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    first = words.strip().split("\n")[0]
    return first if first[:2].isupper() else first[0].lower() + first[1:]


def cache_folder() -> Path:
    """The user's folder for what can be made again: `$XDG_CACHE_HOME/kinema` or ~/.cache/kinema."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kinema"


def write_cache(name: str, text: str) -> None:
    """Keep a text in the cache folder; where that cannot be written, it is done without."""
    with suppress(OSError, RuntimeError, KinemaError):  # RuntimeError: a user without a home
        file = cache_folder() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(file) as unfinished:
            unfinished.write_text(text)
