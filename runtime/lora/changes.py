"""Weights of an opened transformer changed from outside, and put back to the bit.

A weight is always computed from the checkpoint's own, which is read again, plus all that is added,
in float32, and rounded once: nothing of the original is kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.shards import Entry, where
from ..checkpoints.weights import Slot, WeightTable, place, read_tensor
from ..errors import KinemaError
from ..execution.pack import PackedLinear, lay_out
from ..models.layers import LinearGelu
from .formats import Change


class Term(NamedTuple):
    """A change at work: its LoRA's weight, and whether it is merged into what it changes."""

    weight: float
    merged: bool
    change: Change


class Changes:
    """Writes changes of published weights into the native ones.

    `module` is a transformer, whose `block_lists()` are its blocks; `like`: its state dict before
    anything was done to it (on the meta device will do); `entries`: the checkpoint's weights by
    published name.
    """

    def __init__(
        self,
        module: Any,
        like: Mapping[str, Tensor],
        table: WeightTable,
        entries: Mapping[str, Entry],
    ) -> None:
        self.module, self.entries = module, entries
        self.slots = table.slots(like)
        self._like = like
        self._parts: dict[str, list[tuple[str, Slot]]] = {}
        for name, slot in self.slots.items():
            self._parts.setdefault(slot.native, []).append((name, slot))
        self._changed: set[str] = set()  # native weights that are not as they were opened
        self._files = {entry.file: _state(entry.file) for entry in entries.values()}

    def check_files(self) -> None:
        """Raise `KinemaError` unless the files are those that were opened."""
        for file, state in self._files.items():
            if _state(file) != state:
                raise KinemaError(
                    f"{where(file)} has changed since it was opened, so that LoRAs cannot be"
                    " loaded or unloaded; open the checkpoint again"
                )

    @torch.inference_mode()  # where weights were read in it, they can be written in it alone
    def apply(self, published: Iterable[str], terms_of: Callable[[str], Iterable[Term]]) -> None:
        """Make some published weights what `terms_of` each of them asks for."""
        in_blocks = {part for blocks in self.module.block_lists() for part in blocks.modules()}
        for native in dict.fromkeys(self.slots[name].native for name in published):
            can_wrap = self._can_wrap(native, in_blocks)
            merged: dict[str, list[Term]] = {}
            beside: dict[str, list[Term]] = {}
            for name, _ in self._parts[native]:
                for term in terms_of(name):
                    apart = not term.merged and term.change.rank and can_wrap
                    (beside if apart else merged).setdefault(name, []).append(term)
            self._wrap(native, beside)
            self._write(native, merged)

    def _write(self, native: str, terms: Mapping[str, list[Term]]) -> None:
        """The checkpoint's weight, plus what is merged into it, where it belongs."""
        if not terms and native not in self._changed:
            return
        owner, attribute = self._owner(native)
        target = _held(owner, attribute)
        self._changed.add(native)
        filled: dict[str, Tensor] = {}
        for name, slot in self._parts[native]:
            tensor = read_tensor(self.entries[name])
            if terms:
                tensor = tensor.to(target.device, torch.float32)
            for term in terms.get(name, ()):
                tensor += _delta(term, target.device).view_as(tensor)
            place(filled, self._like[native], slot, tensor, target.device, target.dtype)
        if target is getattr(owner, attribute, None):
            target.copy_(filled[native])
        else:
            owner.packed = lay_out(filled[native])
        if not terms:
            self._changed.discard(native)

    def _wrap(self, native: str, terms: Mapping[str, list[Term]]) -> None:
        """Put products beside a linear layer, or the bare layer back in its place."""
        path = native.rpartition(".")[0]
        owner, _ = self._owner(native)
        if not terms and owner is self.module.get_submodule(path):
            return
        added = Added(owner)
        for name, slot in self._parts[native]:
            for term in terms.get(name, ()):
                up = (term.change.up.float() * (term.weight * term.change.scale)).flatten(1)
                up = slot.layout.to_native(up) if slot.layout else up
                assert term.change.down is not None  # it has a rank
                added.add(slot, up, term.change.down)
        parent, _, last = path.rpartition(".")
        setattr(self.module.get_submodule(parent), last, added if terms else owner)

    def _can_wrap(self, native: str, in_blocks: Container[nn.Module]) -> bool:
        """Whether it is of a linear layer of a block: those are called as modules."""
        owner, attribute = self._owner(native)
        linear = attribute == "weight" and isinstance(owner, (nn.Linear, PackedLinear))
        return linear and owner in in_blocks

    def _owner(self, native: str) -> tuple[Any, str]:
        """The module that holds a native weight, and the weight's name there."""
        path, _, attribute = native.rpartition(".")
        owner = self.module.get_submodule(path)
        return (owner.base if isinstance(owner, Added) else owner), attribute


class Added(nn.Module):
    """A linear layer (with its GELU, if it has one) and products of two factors beside it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.gelu = base.gelu if isinstance(base, PackedLinear) else isinstance(base, LinearGelu)
        self.rows: list[slice] = []

    def add(self, slot: Slot, up: Tensor, down: Tensor) -> None:
        """A product (rows of the slot, in_features) of factors."""
        held = _held(self.base, "weight")
        size = up.shape[0]
        number = len(self.rows)
        self.rows.append(slice(slot.part * size, (slot.part + 1) * size))
        self.register_buffer(f"up_{number}", up.to(held.device, held.dtype), persistent=False)
        down = down.flatten(1).to(held.device, held.dtype)
        self.register_buffer(f"down_{number}", down, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base, PackedLinear):
            out = self.base.product(x)
        else:
            out = F.linear(x, self.base.weight, self.base.bias)
        for number, rows in enumerate(self.rows):
            down, up = getattr(self, f"down_{number}"), getattr(self, f"up_{number}")
            out[..., rows] += F.linear(F.linear(x, down), up)
        return F.gelu(out, approximate="tanh") if self.gelu else out


def _held(owner: Any, attribute: str) -> Tensor:
    """The tensor that holds a weight: a parameter, or its packed form."""
    packed = isinstance(owner, PackedLinear) and attribute == "weight"
    return owner.packed if packed else getattr(owner, attribute)


def _delta(term: Term, device: torch.device) -> Tensor:
    """What is added to the published weight, float32."""
    up = term.change.up.to(device, torch.float32)
    if term.change.down is not None:
        up = up.flatten(1) @ term.change.down.to(device, torch.float32).flatten(1)
    return up.mul(term.weight * term.change.scale)


def _state(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
