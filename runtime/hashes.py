"""SHA-256 of files, remembered for large ones as long as they stay as they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from pathlib import Path

from .files import cache_folder, write_cache

STORE = "hashes.json"
HUB_BLOB = re.compile(r"[0-9a-f]{64}")
REMEMBERED_FROM = 16 << 20  # bytes; smaller files are read as fast
SETTLED_NS = 2_000_000_000  # a file changed so lately may change again at the same time stamp


def file_hash(file: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal.

    The hub's cache names a large file by it. That of any other large file is remembered in the
    user's cache folder, beside its size, inode and times of change, and holds while those do: no
    write leaves all of them as they were.
    """
    if file.is_symlink() and HUB_BLOB.fullmatch(blob := file.resolve().name):
        return blob
    state = _state(file)
    if state[0] < REMEMBERED_FROM:
        return _read(file)
    name = str(file.resolve())
    known = _remembered()
    if name in known and known[name][:-1] == state:
        return known[name][-1]
    found = _read(file)
    if _state(file) == state and time.time_ns() - max(state[2:]) > SETTLED_NS:
        _remember({**known, name: [*state, found]})
    return found


def _state(file: Path) -> list[int]:
    """Size, inode, and the times of the last change to contents and to anything else."""
    stat = file.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _remembered() -> dict[str, list]:
    try:
        known = json.loads((cache_folder() / STORE).read_text())
        return {name: entry for name, entry in known.items() if len(entry) == 5}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):
        return {}


def _remember(known: dict[str, list]) -> None:
    kept = {name: entry for name, entry in known.items() if os.path.exists(name)}
    write_cache(STORE, json.dumps(kept))
