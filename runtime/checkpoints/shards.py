"""Safetensors files on disk: which of a folder's hold its weights, and what their headers say.

Only safetensors files are read: they hold tensors and nothing that runs. No tensor is read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import KinemaError

SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_SUFFIX = ".safetensors.index.json"
PICKLED = (".bin", ".pth", ".pt", ".ckpt")
HEADER_LIMIT = 100_000_000  # bytes; the format's own
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor: the name it has there, and the bytes it takes.

    Its values are to be multiplied by those of `scale`, where there is one.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    scale: Entry | None = None


def read_entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a component, by the name its file gives it.

    `path`: its folder, or its one file. Raises `KinemaError` for a file that is damaged, missing or
    not safetensors, and for a tensor that two files hold.
    """
    entries: dict[str, Entry] = {}
    for file in weight_files(path):
        for entry in read_header(file):
            if other := entries.get(entry.name):
                raise KinemaError(
                    f"{where(file)} and {other.file.name} both hold {entry.name}; keep one"
                )
            entries[entry.name] = entry
    return entries


# ---- which files ---------------------------------------------------------------------------------


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a component's folder; raises `KinemaError` where one is missing."""
    if path.is_file():
        if path.suffix in PICKLED:
            raise KinemaError(how_to_convert(path))
        return [path]
    for name in SINGLE_FILES:
        if (path / name).is_file():
            return [path / name]
        if (path / f"{name}.index.json").is_file():
            return shards_of(path / f"{name}.index.json")
    indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(path.glob("*.safetensors"))
    if len(indices) == 1:
        return shards_of(indices[0])
    if len(files) == 1:
        return files
    if files or indices:
        names = ", ".join(found.name for found in [*indices, *files])
        raise KinemaError(f"{where(path)} has several sets of weights: {names}; keep one")
    pickled = sorted(found for found in path.glob("*") if found.suffix in PICKLED)
    if pickled:
        raise KinemaError(how_to_convert(pickled[0]))
    raise KinemaError(f"{where(path)} has no weights; {SINGLE_FILES[0]} is expected")


def shards_of(index: Path) -> list[Path]:
    """The files that an index names; raises `KinemaError` where one of them is missing."""
    shards = [index.parent / name for name in shard_names(index)]
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise KinemaError(f"{where(index)} names shards that are missing: {', '.join(absent)}")
    return shards


def shard_names(index: Path) -> list[str]:
    """The names of files in an index, which are all beside it; raises `KinemaError` if not."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise KinemaError(f"cannot read {where(index)}: {error!r}") from None
    if outside:
        raise KinemaError(f"{where(index)} names {outside[0]!r}, which is not a file beside it")
    return names


def how_to_convert(file: Path) -> str:
    """Why a pickle is not read, and the command that makes safetensors of it."""
    name = SINGLE_FILES[1] if file.stem == "pytorch_model" else f"{file.stem}.safetensors"
    return (
        f"{where(file)} is a pickle, which can run code and is not read; to convert it: python -c"
        ' "import torch, safetensors.torch as s; s.save_file({k: v.contiguous().clone() for k, v'
        f""" in torch.load('{file.name}', weights_only=True).items()}}, '{name}')\""""
    )


# ---- headers -------------------------------------------------------------------------------------


def read_header(file: Path) -> list[Entry]:
    """Every tensor of a file, in the order of its bytes.

    Raises `KinemaError` naming the file, and the byte where it is cut or damaged.
    """
    header, first = _read_json_header(file)
    header.pop("__metadata__", None)
    try:
        entries = [_entry(file, first, name, fields) for name, fields in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KinemaError(f"{where(file)} is damaged: no header at byte offset 8") from None
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_bytes(file, first, entries)
    return entries


def read_metadata(file: Path) -> Mapping[str, str]:
    """What a file says of itself; nothing where it says nothing."""
    metadata = _read_json_header(file)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _read_json_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and the byte at which tensors begin."""
    size = file.stat().st_size
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            need = f"a header of {length} bytes" if size >= 8 else "8 bytes of header length"
            raise KinemaError(f"{where(file)} is cut or damaged: {size} bytes, {need} expected")
        try:
            header = json.loads(raw.read(length))
        except ValueError:
            header = None
    if not isinstance(header, dict):
        raise KinemaError(f"{where(file)} is damaged: no header at byte offset 8")
    return header, 8 + length


def _entry(file: Path, first: int, name: str, fields: dict[str, Any]) -> Entry:
    shape, (begin, end) = tuple(fields["shape"]), fields["data_offsets"]
    if any(type(number) is not int for number in (*shape, begin, end)):
        raise TypeError
    return Entry(file, name, str(fields["dtype"]), shape, first + begin, first + end)


def _check_bytes(file: Path, first: int, entries: list[Entry]) -> None:
    """Tensors must follow one another without overlap or gap, each as long as its shape and type
    ask for, up to the end of the file."""
    size = file.stat().st_size
    end = max((entry.end for entry in entries), default=first)
    if end > size:
        lost = min((entry for entry in entries if entry.end > size), key=lambda entry: entry.end)
        raise KinemaError(
            f"{where(file)} is cut off at byte {size} of {end}: {lost.name} ends at {lost.end}"
        )
    at = first
    for entry in entries:
        if entry.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise KinemaError(
                f"{entry.name} in {where(file)} is {entry.dtype[:20]!r}; known types: {known}"
            )
        if entry.start != at or min(entry.shape, default=0) < 0:
            raise KinemaError(
                f"{where(file)} is damaged at byte {at}: {entry.name} is said to begin at"
                f" {entry.start}"
            )
        wanted = prod(entry.shape) * ITEM_BYTES[entry.dtype]
        if entry.end - entry.start != wanted:
            raise KinemaError(
                f"{where(file)} is damaged at byte {entry.start}: {entry.name} is said to take"
                f" {entry.end - entry.start} bytes, {wanted} as {entry.dtype} {list(entry.shape)}"
            )
        at = entry.end
    if at < size:
        raise KinemaError(f"{where(file)} is damaged at byte {at}: no tensor has what follows")


def where(path: Path) -> str:
    """A path as errors name it: its last three parts."""
    return "/".join(path.parts[-3:])
