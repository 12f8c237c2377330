"""Published weights into native modules and back: a rename table and a stream of tensors."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import KinemaError
from .originals import match
from .shards import Entry, read_entries, where

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

NEIGHBOURS = 1 << 20  # bytes

Module = TypeVar("Module", bound=nn.Module)
Value = TypeVar("Value")


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
    `keep_fp32` is kept in float32 whatever the dtype asked for; one with a part in `unused` is left
    out, as nothing reads it.
    """

    rules: Mapping[str, tuple[str, ...]]
    layouts: Mapping[str, Layout]
    keep_fp32: frozenset[str] = frozenset()
    unused: frozenset[str] = frozenset()

    def used(self, tensors: Mapping[str, Value]) -> dict[str, Value]:
        """Those that are not left out."""
        return {
            name: value
            for name, value in tensors.items()
            if self.unused.isdisjoint(name.split("."))
        }

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
        if found := match(self.rules, native):
            return found
        raise KeyError(f"no rule for the native weight {native!r}")


# ---- loading -------------------------------------------------------------------------------------


def load(
    create: Callable[[], Module],
    weights: Path | Mapping[str, Entry],
    table: WeightTable | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Module:
    """A module with the weights of a checkpoint folder, in eval mode and without gradients.

    `weights`: the folder, or what its files hold (`read_entries`) by published name. `create` makes
    the module on the meta device; tensors are then read one by one from memory-mapped files, so
    that the host never holds more than the module and one tensor. `table` renames them; without one
    the names are equal. Raises `KinemaError` naming the file that is damaged, missing or not
    safetensors, or the tensors that are missing, left over, misshapen or not numbers of the right
    kind.
    """
    with torch.device("meta"):
        module = create()
    native = module.state_dict()
    table = table or same_names(native)
    slots = table.slots(native)
    entries = table.used(read_entries(weights) if isinstance(weights, Path) else weights)
    check_names(slots, entries)
    for name, slot in slots.items():
        check_entry(name, entries[name], slot, native[slot.native])
    filled: dict[str, Tensor] = {}
    for name, tensor in stream(entries):
        place(filled, native[slots[name].native], slots[name], tensor, device, dtype)
    module.load_state_dict(filled, assign=True)
    left = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not left, f"buffers that no checkpoint holds: {left}"
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
    """(name, tensor) file by file, in the order of the bytes.

    A tensor is a view of the mapped file: use it before asking for the next, whose bytes then take
    the place of its own in memory.
    """
    for file in dict.fromkeys(entry.file for entry in entries.values()):
        mapped = _map(file)
        held = [(name, entry) for name, entry in entries.items() if entry.file == file]
        held.sort(key=lambda item: item[1].start)
        following = [entry for _, entry in held[1:]]
        for (name, entry), after in zip_longest(held, following):
            if after is not None:
                _advise(mapped, "MADV_WILLNEED", after.start, after.end)
            yield name, _scaled(_view(mapped, entry), entry)
            # A page that is read maps its neighbours as well, some before it.
            _advise(mapped, "MADV_DONTNEED", entry.start - NEIGHBOURS, entry.end)


def read_tensor(entry: Entry) -> Tensor:
    """One tensor, copied out of its file."""
    return _scaled(_view(_map(entry.file), entry).clone(), entry)


def views(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Every tensor, in the memory of its mapped file: read where it is used, private if written."""
    files = {file: _map(file) for file in {entry.file for entry in entries.values()}}
    return {
        name: _scaled(_view(files[entry.file], entry), entry) for name, entry in entries.items()
    }


def _scaled(tensor: Tensor, entry: Entry) -> Tensor:
    """A tensor, in float32 by its scale if it has one: one number, or one a row."""
    if entry.scale is None:
        return tensor
    scale, rows = read_tensor(entry.scale).float(), tensor.shape[0]
    if scale.numel() not in (1, rows):
        raise KinemaError(
            f"{entry.scale.name} in {where(entry.scale.file)} has shape {list(scale.shape)};"
            f" one scale is expected, or one for each of {rows} rows"
        )
    return tensor.float() * scale.view(-1, *[1] * (tensor.dim() - 1))


def _map(file: Path) -> mmap.mmap:
    """A file as memory, unmapped once no tensor views it. Writes would stay private."""
    try:
        with file.open("rb") as raw:
            return mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise KinemaError(f"cannot read {where(file)}: {error}") from None


def _view(mapped: mmap.mmap, entry: Entry) -> Tensor:
    kind = TYPES[entry.dtype]
    if entry.end == entry.start:
        return torch.empty(entry.shape, dtype=kind)
    if entry.end > len(mapped):
        raise KinemaError(f"{where(entry.file)} was cut off at byte {len(mapped)} while being read")
    raw = torch.frombuffer(
        mapped, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start
    )
    if entry.start % kind.itemsize:
        raw = raw.clone()
    return raw.view(kind).view(entry.shape)


def _advise(mapped: mmap.mmap, advice: str, start: int, end: int) -> None:
    """Tell the system what will happen to bytes of a mapped file, where it can be told."""
    if hasattr(mmap, advice):
        start = max(0, start) // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(getattr(mmap, advice), start, end - start)


def check_entry(name: str, entry: Entry, slot: Slot, native: Tensor) -> None:
    """Raise `KinemaError` unless the published tensor has the shape and kind its slot asks for."""
    rows = native.chunk(slot.parts)[slot.part]
    wanted = tuple((slot.layout.to_published(rows) if slot.layout else rows).shape)
    if entry.shape != wanted:
        raise KinemaError(
            f"{name} in {where(entry.file)} has shape {list(entry.shape)};"
            f" the config asks for {list(wanted)}"
        )
    if TYPES[entry.dtype].is_floating_point != native.is_floating_point():
        kind = "a float" if native.is_floating_point() else "an integer"
        raise KinemaError(f"{name} in {where(entry.file)} is {entry.dtype}; {kind} is expected")


# ---- whole dicts ---------------------------------------------------------------------------------


def from_published(
    table: WeightTable, native_names: Iterable[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A native state dict from published tensors; `KinemaError` on missing or leftover names."""
    slots, tensors = table.slots(native_names), table.used(tensors)
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
