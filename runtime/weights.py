"""Published weights into native modules and back: a rename table and a stream of tensors.

Only safetensors files are read: they hold tensors and nothing that runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import KinemaError

SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_SUFFIX = ".safetensors.index.json"
PICKLED = (".bin", ".pth", ".pt", ".ckpt")
HEADER_LIMIT = 100_000_000  # bytes; the format's own

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """A change of memory layout between a published tensor and the native one, both ways."""

    to_native: Callable[[Tensor], Tensor]
    to_published: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Slot:
    """Where a published tensor goes: the `part`-th of `parts` equal row ranges of `native`."""

    native: str
    part: int
    parts: int
    layout: Layout | None
    keep_fp32: bool


@dataclass(frozen=True)
class WeightTable:
    """How native names become published ones.

    `rules` maps a native name (or a module's prefix; `{}` stands for a block's number) to the
    published names whose tensors, stacked along rows in this order, it holds. `layouts` gives a
    published name (same form) a change of layout. A published name with a part named in
    `keep_fp32` is kept in float32 whatever the dtype asked for.
    """

    rules: Mapping[str, tuple[str, ...]]
    layouts: Mapping[str, Layout]
    keep_fp32: frozenset[str] = frozenset()

    def slots(self, native_names: Iterable[str]) -> dict[str, Slot]:
        """Published name -> slot, for every published tensor that `native_names` are made of."""
        return {name: slot for native in native_names for name, slot in self._sources(native)}

    def _sources(self, native: str) -> Iterator[tuple[str, Slot]]:
        rule, number, tail = self._match(native)
        for part, source in enumerate(self.rules[rule]):
            name = source.format(number) + tail
            keep = not self.keep_fp32.isdisjoint(name.split("."))
            yield name, Slot(native, part, len(self.rules[rule]), self.layouts.get(source), keep)

    def _match(self, native: str) -> tuple[str, str, str]:
        for rule in self.rules:
            pattern = re.escape(rule).replace(r"\{\}", r"(?P<number>\d+)")
            if found := re.fullmatch(rf"{pattern}(?P<tail>\..+)?", native):
                return rule, found.groupdict().get("number") or "", found["tail"] or ""
        raise KeyError(f"no rule for the native weight {native!r}")


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor."""

    file: Path
    shape: tuple[int, ...]


# ---- loading -------------------------------------------------------------------------------------


def load(
    create: Callable[[], Module],
    folder: Path,
    table: WeightTable | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Module:
    """A module with the weights of a checkpoint folder, in eval mode and without gradients.

    `create` makes it on the meta device; tensors are then read one by one from memory-mapped files.
    `table` renames them; without one the names are equal. Raises `KinemaError` naming the file that
    is damaged, missing or not safetensors, or the tensors that are missing, left over or misshapen.
    """
    with torch.device("meta"):
        module = create()
    native = module.state_dict()
    slots = (table or same_names(native)).slots(native)
    entries = {name: entry for file in weight_files(folder) for name, entry in read_header(file)}
    check_names(slots, entries)
    for name, slot in slots.items():
        check_shape(name, entries[name], slot, native[slot.native])
    filled: dict[str, Tensor] = {}
    for name, tensor in stream(entries):
        place(filled, native[slots[name].native], slots[name], tensor, device, dtype)
    module.load_state_dict(filled, assign=True)
    return module.requires_grad_(False).eval()


def same_names(native: Iterable[str]) -> WeightTable:
    """The table of a module whose native names are the published ones."""
    return WeightTable({name: (name,) for name in native}, {})


def place(
    filled: dict[str, Tensor],
    like: Tensor,
    slot: Slot,
    tensor: Tensor,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    """Write a published tensor into its rows of the native one, which is made when first met."""
    if slot.native not in filled:
        kind = torch.float32 if slot.keep_fp32 else dtype
        kind = kind if like.is_floating_point() else like.dtype
        filled[slot.native] = torch.empty(like.shape, dtype=kind, device=device)
    tensor = slot.layout.to_native(tensor) if slot.layout else tensor
    filled[slot.native].chunk(slot.parts)[slot.part].copy_(tensor)


def stream(entries: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) file by file; a tensor is a view of the mapped file as long as it is held."""
    from safetensors import SafetensorError, safe_open

    for file in dict.fromkeys(entry.file for entry in entries.values()):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # it is no dict
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise KinemaError(f"cannot read {_where(file)}: {error}") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder; raises `KinemaError` where one is missing."""
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(folder.glob("*.safetensors"))
    for name in SINGLE_FILES:
        if folder / name in files:
            return [folder / name]
    if len(indices) == 1:
        return _shards(indices[0])
    if len(files) == 1:
        return files
    if files or indices:
        names = ", ".join(path.name for path in [*indices, *files])
        raise KinemaError(f"{_where(folder)} has several sets of weights: {names}; keep one")
    pickled = sorted(path for path in folder.glob("*") if path.suffix in PICKLED)
    if pickled:
        raise KinemaError(_how_to_convert(pickled[0]))
    raise KinemaError(f"{_where(folder)} has no weights; {SINGLE_FILES[0]} is expected")


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text())["weight_map"].values()
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise KinemaError(f"cannot read {_where(index)}: {error!r}") from None
    shards = [index.parent / name for name in sorted(set(names))]
    if absent := [shard.name for shard in shards if not shard.is_file()]:
        raise KinemaError(f"{_where(index)} names shards that are missing: {', '.join(absent)}")
    return shards


def _how_to_convert(file: Path) -> str:
    return (
        f"{_where(file)} is a pickle, which can run code and is not read; to convert it: python -c"
        ' "import torch, safetensors.torch as s;'
        f" s.save_file({{k: v.clone() for k, v in torch.load('{file.name}', weights_only=True)"
        f""".items()}}, '{SINGLE_FILES[0]}')\""""
    )


def read_header(file: Path) -> Iterator[tuple[str, Entry]]:
    """(name, entry) of every tensor in a file; raises `KinemaError` where it is cut or damaged."""
    size = file.stat().st_size
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            need = f"a header of {length} bytes" if size >= 8 else "8 bytes of header length"
            raise KinemaError(f"{_where(file)} is cut or damaged: {size} bytes, {need} expected")
        try:
            header: dict[str, Any] = json.loads(raw.read(length))
            header.pop("__metadata__", None)
            entries = {name: Entry(file, tuple(tensor["shape"])) for name, tensor in header.items()}
            ends = {name: 8 + length + tensor["data_offsets"][1] for name, tensor in header.items()}
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise KinemaError(f"{_where(file)} is damaged: no header at byte offset 8") from None
    cut = [(end, name) for name, end in ends.items() if end > size]
    if cut:
        end, name = min(cut)
        raise KinemaError(
            f"{_where(file)} is cut off at byte {size} of {max(ends.values())}:"
            f" {name} ends at {end}"
        )
    yield from entries.items()


def check_shape(name: str, entry: Entry, slot: Slot, native: Tensor) -> None:
    """Raise `KinemaError` unless the published tensor has the shape that its slot asks for."""
    rows = native.chunk(slot.parts)[slot.part]
    wanted = tuple((slot.layout.to_published(rows) if slot.layout else rows).shape)
    if entry.shape != wanted:
        raise KinemaError(
            f"{name} in {_where(entry.file)} has shape {list(entry.shape)};"
            f" the config asks for {list(wanted)}"
        )


# ---- whole dicts ---------------------------------------------------------------------------------


def from_published(
    table: WeightTable, native_names: Iterable[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A native state dict from published tensors; `KinemaError` on missing or leftover names."""
    slots = table.slots(native_names)
    check_names(expected=slots, found=tensors)
    parts: dict[str, list[Tensor]] = {}
    for name, slot in slots.items():
        tensor = tensors[name]
        parts.setdefault(slot.native, []).append(
            slot.layout.to_native(tensor) if slot.layout else tensor
        )
    return {native: torch.cat(p) if len(p) > 1 else p[0] for native, p in parts.items()}


def to_published(table: WeightTable, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors from a native state dict, contiguous, none sharing memory with another."""
    published = {}
    for name, slot in table.slots(state_dict).items():
        rows = state_dict[slot.native].detach().chunk(slot.parts)[slot.part]
        published[name] = (slot.layout.to_published(rows) if slot.layout else rows).contiguous()
    return published


def check_names(expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise `KinemaError` listing what is missing and what is left over."""
    expected, found = set(expected), set(found)
    complaints = [
        f"{label}: {_some(names)}"
        for label, names in (("missing", expected - found), ("not known", found - expected))
        if names
    ]
    if complaints:
        raise KinemaError(f"weights do not fit the model; {'; '.join(complaints)}")


def _some(names: set[str], limit: int = 6) -> str:
    listed = ", ".join(sorted(names)[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"


def _where(path: Path) -> str:
    return "/".join(path.parts[-3:])
