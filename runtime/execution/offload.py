"""Where weights are while they do not work: modes that a finished module is put under from outside.

none: on the device. model: on the host, and on the device while the module is used. block: the
same, but of the lists of equal blocks that make up most of a transformer no more than two blocks
are on the device at once: the one that computes, and the next, which is copied meanwhile. A block
is there when its list is iterated over, so that is how a model must visit its blocks.

Weights are only read while they are lent: nothing is copied back. Who changes a module (a LoRA)
calls `leave` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .block_stream import BlockStream, make_movable, tensors_of
from .modes import MODES

HOST = torch.device("cpu")


class Offload:
    """One mode for the modules of an engine, which take turns on its device.

    In the modes that offload one module is on the device at a time, from when it is used until
    another is. Modes go from fast to lean, and `adopt` only on to leaner ones. Raises `UsageError`
    for an unknown mode.
    """

    def __init__(self, device: torch.device | str, mode: str = "none") -> None:
        if mode not in MODES:
            raise UsageError(f"offload is {mode!r}; it must be one of {', '.join(MODES)}")
        self.device, self.mode = torch.device(device), mode
        self.lent: Placed | None = None
        self.placed: WeakSet[Placed] = WeakSet()

    @property
    def home(self) -> torch.device:
        """Where weights are read to, and where they are while they do not work."""
        return self.device if self.mode == "none" else HOST

    def place(self, module: nn.Module, lists: Sequence[str] | None = None) -> Placed:
        """Put a module under the mode, wherever its weights are; `lists` as in `place`."""
        placed = Placed(self, module, lists)
        self.placed.add(placed)
        return placed

    def adopt(self, mode: str) -> None:
        """Put all that was placed under a leaner mode, between two uses: weights go home first."""
        if MODES.index(mode) <= MODES.index(self.mode):
            return
        self.leave()
        self.mode = mode
        for placed in self.placed:
            placed.settle()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def leave(self) -> None:
        """Take what is lent off the device."""
        if self.lent is not None:
            self.lent.leave()


class Placed:
    """A module under an `Offload`: `use` it before every piece of work."""

    def __init__(self, offload: Offload, module: nn.Module, lists: Sequence[str] | None) -> None:
        self.offload, self.module, self.lists = offload, module, lists
        self.settle()

    def settle(self) -> None:
        """Put the module, which is not lent, under the mode."""
        to = self.offload
        self.context = place(bring(self.module, to.home), to.device, to.mode, self.lists)

    def use(self) -> Any:
        """The module, ready to work on the device until another is used."""
        if self.offload.lent is not self:
            self.offload.leave()
            self.context.__enter__()
            self.offload.lent = self
        return self.module

    def leave(self) -> None:
        """Take the module off the device, if it was lent to it."""
        if self.offload.lent is self:
            self.offload.lent = None
            self.context.__exit__(None, None, None)


def place(
    module: nn.Module,
    device: torch.device | str,
    mode: str = "none",
    lists: Sequence[str] | None = None,
) -> AbstractContextManager[nn.Module]:
    """A context inside which a module is ready to work; it may be entered again and again.

    The module's weights are on the host, but for mode "none" anywhere. `lists` names its lists of
    blocks, where it does not tell of them itself (`block_lists()`); a module that has none is lent
    as a whole.
    """
    device = torch.device(device)
    if mode == "none":
        return nullcontext(module.to(device))
    if mode == "model":
        return Lent(module, device)
    return Streamed(module, device, told_lists(module) if lists is None else lists)


class Lent(AbstractContextManager):
    """A module that is on the device inside the context, and on the host outside."""

    def __init__(
        self, module: nn.Module, device: torch.device, streams: Sequence[BlockStream] = ()
    ) -> None:
        self.module, self.device, self.streams, self.entered = module, device, streams, 0
        self.homes: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> nn.Module:
        self.entered += 1
        if self.entered == 1:
            make_movable(self.module)
            streamed = {id(x) for stream in self.streams for x in tensors_of(stream)}
            lent = [x for x in tensors_of(self.module) if id(x) not in streamed]
            self.homes = [(x, x.data) for x in lent]
            try:
                with torch.inference_mode(False):
                    for x, home in self.homes:
                        x.data = lend(home, self.device)
            except BaseException:
                self.__exit__()
                raise
        return self.module

    def __exit__(self, *_: object) -> None:
        self.entered -= 1
        if self.entered:
            return
        for x, home in self.homes:
            x.data = home
        self.homes = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Streamed(AbstractContextManager):
    """A module that is lent to the device but for its blocks, which pass through it one by one."""

    def __init__(self, module: nn.Module, device: torch.device, lists: Sequence[str]) -> None:
        self.module, self.streams = module, list[BlockStream]()
        parts = dict(module.named_modules())
        for name in lists:
            if isinstance(blocks := parts.get(name), nn.ModuleList):
                owner, _, attribute = name.rpartition(".")
                self.streams.append(BlockStream(blocks, device))
                setattr(parts[owner], attribute, self.streams[-1])
        self.rest = Lent(module, device, self.streams)

    def __enter__(self) -> nn.Module:
        self.rest.__enter__()
        return self.module

    def __exit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.release()
        self.rest.__exit__()


def told_lists(module: Any) -> list[str]:
    """The names of the lists of blocks that a module tells of, if it does."""
    lists = module.block_lists() if hasattr(module, "block_lists") else []
    return [name for name, part in module.named_modules() if any(part is told for told in lists)]


@torch.inference_mode(False)
def bring(module: nn.Module, home: torch.device) -> nn.Module:
    """The module, its weights moved home, one by one, where they are not there."""
    if not all(_is_at(x, home) for x in tensors_of(module)):
        make_movable(module)
        for x in tensors_of(module):
            x.data = x.data.to(home)
    return module


def _is_at(x: Tensor, home: torch.device) -> bool:
    return x.device.type == home.type and home.index in (None, x.device.index)


def lend(x: Tensor, device: torch.device) -> Tensor:
    """A tensor's copy on the device."""
    return x.to(device)
