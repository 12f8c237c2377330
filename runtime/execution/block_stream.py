"""A list of equal blocks that pass through a device, two at a time."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import KinemaError
from .modes import RESIDENT_BLOCKS

ALIGNMENT = 512  # bytes; where the device's own allocator starts its blocks


class Part(NamedTuple):
    """One tensor of a block: where it lies in the block's bytes at home, and in the slot."""

    tensor: Tensor
    home: Tensor
    lent: Tensor


class BlockStream(nn.ModuleList):
    """A list of blocks, each on the device while an iteration is at it; the next one is on its way.

    The bytes of a block lie together on the host, pinned where the device is CUDA, so that one copy
    moves it. On the device are two slots, each as large as the largest block, as long as iterations
    go on; `release` frees them.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device) -> None:
        super().__init__(blocks.children())
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.training = blocks.training
        self.homes = [torch.empty(0, dtype=torch.uint8)] * len(self)
        self._settle()
        self.slots: list[Slot] = []
        self.parts: list[list[Part]] = []
        self.resident: set[int] = set()
        self.turn = 0

    def __iter__(self) -> Iterator[nn.Module]:
        """The blocks in order, each ready to compute on the current stream until the next."""
        self.turn += 1
        turn, blocks = self.turn, list(self._modules.values())
        if not blocks:
            return
        self._evict_all()
        self._prepare()
        try:
            self._fetch(0)
            for i, block in enumerate(blocks):
                if i + 1 < len(blocks):
                    self._fetch(i + 1)
                self.slots[i % RESIDENT_BLOCKS].wait()
                yield block
                self._evict(i)
        finally:
            if turn == self.turn:  # an iteration left half-way may end after another has begun
                self._evict_all()

    def release(self) -> None:
        """Take every block and the slots off the device."""
        self._evict_all()
        if self.side is not None:
            self.side.synchronize()  # a copy may be under way, to what is freed here
        self.slots, self.parts = [], []

    def _prepare(self) -> None:
        if self.slots:
            return
        self._settle()
        size = max(home.numel() for home in self.homes)
        with torch.inference_mode(False):
            self.slots = [Slot(size, self.device, self.side) for _ in range(RESIDENT_BLOCKS)]
            for i, (block, home) in enumerate(zip(self._modules.values(), self.homes, strict=True)):
                tensors, room = tensors_of(block), self.slots[i % RESIDENT_BLOCKS].room
                spans = zip(tensors, views(tensors, home), views(tensors, room), strict=True)
                self.parts.append([Part(*span) for span in spans])

    def _settle(self) -> None:
        """Gather blocks, but for those whose tensors lie where they were gathered before."""
        for i, block in enumerate(self._modules.values()):
            make_movable(block)
            if not lies_in(tensors_of(block), self.homes[i]):
                self.homes[i] = gather(tensors_of(block), self.device)

    def _fetch(self, index: int) -> None:
        """Begin to copy a block into its slot."""
        self.resident.add(index)
        self.slots[index % RESIDENT_BLOCKS].fill(self.homes[index])
        for part in self.parts[index]:
            part.tensor.data = part.lent

    def _evict(self, index: int) -> None:
        """Give a block's slot to the next one, once what was asked of the device is done."""
        for part in self.parts[index]:
            part.tensor.data = part.home
        self.slots[index % RESIDENT_BLOCKS].vacate()
        self.resident.discard(index)

    def _evict_all(self) -> None:
        for index in sorted(self.resident):
            self._evict(index)


class Slot:
    """Room for a block on the device, filled on a stream beside the one that computes."""

    def __init__(self, size: int, device: torch.device, side: torch.cuda.Stream | None) -> None:
        self.room = torch.empty(size, dtype=torch.uint8, device=device)
        self.side = side
        if side is not None:
            self.filled = torch.cuda.Event()
        self.vacate()

    def fill(self, home: Tensor) -> None:
        """Copy a block's bytes here, after whatever still computes with those before."""
        if self.side is None:
            self.room[: home.numel()].copy_(home)
            return
        self.side.wait_event(self.vacant)
        with torch.cuda.stream(self.side):
            self.room[: home.numel()].copy_(home, non_blocking=True)
            self.filled.record()

    def wait(self) -> None:
        """Let what follows on the current stream wait for the bytes."""
        if self.side is not None:
            torch.cuda.current_stream(self.room.device).wait_event(self.filled)

    def vacate(self) -> None:
        """The bytes are no longer needed by what follows on the current stream."""
        if self.side is not None:
            self.vacant = torch.cuda.current_stream(self.room.device).record_event()


def gather(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Move tensors on the host into one buffer of bytes, of which they become views."""
    if away := [x for x in tensors if x.device.type != "cpu"]:
        raise KinemaError(f"blocks to be offloaded are on {away[0].device}; the host is expected")
    with torch.inference_mode(False):
        home = torch.empty(_offsets(tensors)[-1], dtype=torch.uint8)
        if device.type == "cuda":
            pin(home)
        for x, view in zip(tensors, views(tensors, home), strict=True):
            x.data = view.copy_(x.data)
    return home


def lies_in(tensors: Sequence[Tensor], home: Tensor) -> bool:
    """Whether tensors are the views of a buffer that `gather` made of them."""
    if _offsets(tensors)[-1] != home.numel():
        return False
    pairs = zip(tensors, views(tensors, home), strict=True)
    return all(x.data_ptr() == view.data_ptr() for x, view in pairs if x.numel())


def views(tensors: Sequence[Tensor], buffer: Tensor) -> list[Tensor]:
    """Views of a buffer of bytes, typed and shaped like the tensors."""
    return [
        buffer[start : start + x.nbytes].view(x.dtype).view(x.shape)
        for x, start in zip(tensors, _offsets(tensors), strict=False)
    ]


def pin(buffer: Tensor) -> Tensor:
    """Page-lock a contiguous host tensor in place, for as long as it lives.

    torch's own pinned allocator rounds up to a power of two, up to twice what a block needs.
    Raises `KinemaError` where the system does not give so much.
    """
    address, size = buffer.data_ptr(), buffer.nbytes
    if size == 0:
        return buffer
    runtime = torch.cuda.cudart()
    assert runtime is not None
    error = runtime.cudaHostRegister(address, size, 0)
    if int(error) != 0:
        raise KinemaError(
            f"{size:,} bytes of host memory cannot be page-locked ({error}); offload='model' needs"
            " none"
        )
    weakref.finalize(buffer, runtime.cudaHostUnregister, address).atexit = False
    return buffer


@torch.inference_mode(False)
def make_movable(module: nn.Module) -> None:
    """Copy, one by one, tensors that were made in inference mode, which cannot be moved."""
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, x in held.items():
                if x is not None and x.is_inference():
                    if id(x) not in copies:
                        copy = torch.empty_like(x, requires_grad=False).copy_(x)
                        is_weight = isinstance(x, nn.Parameter)
                        copies[id(x)] = nn.Parameter(copy, False) if is_weight else copy
                    # A parameter for a parameter.
                    held[name] = copies[id(x)]  # pyright: ignore[reportArgumentType]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def _offsets(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor begins among bytes laid out in a row, and where the last one ends."""
    offsets = [0]
    for x in tensors:
        offsets.append(offsets[-1] + -(-x.nbytes // ALIGNMENT) * ALIGNMENT)
    return offsets
