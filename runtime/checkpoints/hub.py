"""Checkpoints on the hub: fetched once, resumed where interrupted, only what is needed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import KinemaError
from .shards import SINGLE_FILES, shard_names

DESCRIPTIONS = ("*.json", "*.model", "*.txt")
COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(hub_id: str, weight_folders: Callable[[Path], Iterable[str]]) -> Path:
    """The local folder of a hub id. Raises KinemaError where the hub does not give it.

    Descriptions are fetched first; from them `weight_folders` tells which folders hold weights.
    Of those come the files that their indices name and no others: a repository may hold weights in
    several precisions, and pickled besides.
    """
    folder = _download(hub_id, DESCRIPTIONS)
    if wanted := [file for part in weight_folders(folder) for file in _missing(folder, part)]:
        commit = folder.name if COMMIT.fullmatch(folder.name) else None
        folder = _download(hub_id, wanted, commit)
    return folder


def fetched(index: str) -> Iterator[tuple[str, str]]:
    """Hub ids that are in the hub's cache on this machine, with the pipeline class of each."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        for file in repository.glob(f"snapshots/*/{index}"):
            with suppress(OSError, ValueError, AttributeError):
                kind = str(json.loads(file.read_text()).get("_class_name"))
                yield repository.name.removeprefix("models--").replace("--", "/", 1), kind
                break


def _missing(folder: Path, part: str) -> list[str]:
    """Weight files of one folder that are not there yet: its shards, or a single file under the
    names it may have."""
    if not (folder / part / "config.json").is_file():
        return []
    for name in SINGLE_FILES:
        index = folder / part / f"{name}.index.json"
        if index.is_file():
            shards = [Path(part, shard) for shard in shard_names(index)]
            return [shard.as_posix() for shard in shards if not (folder / shard).is_file()]
    single = [Path(part, name) for name in SINGLE_FILES]
    if any((folder / file).is_file() for file in single):
        return []
    return [file.as_posix() for file in single]


def _download(hub_id: str, patterns: Iterable[str], revision: str | None = None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns))
    except Exception as error:  # the hub client raises many kinds, none of which a user can act on
        reason = str(error).strip().split("\n")[0]
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise KinemaError(f"cannot fetch {hub_id!r} from the hub{offline}: {reason}") from error
    return Path(found)
