"""The layers of diffusers' `AutoencoderKLWan`, called one after another for a chunk of frames.

`run_first` and `run_next` are functions of a chunk and of what the causal convolutions have seen of
the clip. The tiled forms are one pass over one clip, called with chunk after chunk, and work in
windows where pictures are large; what a window has seen, most of the memory, waits on the host for
its next chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .geometry import Tile
from .wan_sizes import REMEMBERED
from .windows import Windows

FINE_STEPS_UP, FINE_STEPS_DOWN = 1, 2  # changes of resolution inside windows


class Memory:
    """What the causal convolutions of a decoder or an encoder have seen of a clip."""

    def __init__(self, coder: nn.Module) -> None:
        self.features: list[Any] = [None] * sum(isinstance(m, nn.Conv3d) for m in coder.modules())
        self.parked: dict[int, Tensor] = {}  # on the host

    def since(self, layer: int = 0) -> dict[str, Any]:
        """The arguments that hand it to the reference's layers, from the `layer`-th on."""
        return {"feat_cache": self.features, "feat_idx": [layer]}

    @contextmanager
    def fetched(self, device: torch.device) -> Iterator[Memory]:
        """It is on the device inside, and waits on the host outside: tiles take turns."""
        for i in self.parked:
            self.features[i] = self.parked[i].to(device, non_blocking=True)
        yield self
        for i, x in enumerate(self.features):
            if isinstance(x, Tensor) and is_scarce(x.device):
                room = self.parked.get(i)
                if room is None or room.shape != x.shape:
                    room = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
                self.parked[i] = room.copy_(x, non_blocking=True)
                self.features[i] = None


def is_scarce(device: torch.device) -> bool:
    """Whether a device has memory of its own, which tiles are there to save."""
    return device.type != "cpu"


def run_first(coder: nn.Module, x: Tensor, **how: Any) -> tuple[Tensor, list[Tensor]]:
    """The first frame of a clip, and what the causal convolutions keep of it, in order."""
    frames = frames_before(coder)
    features: list[Any] = [None] * len(frames)
    made = coder(x, feat_cache=features, feat_idx=[0], **how)
    memory: list[Tensor] = []
    for seen, count in zip(features, frames, strict=True):
        if isinstance(seen, Tensor):
            memory.append(at_least(count, seen))
        else:  # a mark where frames are not doubled yet: that layer saw nothing, and what it would
            memory.append(torch.zeros_like(memory[-1]))  # see is as large as what the last one saw
    return made, memory


def run_next(coder: nn.Module, x: Tensor, memory: Iterable[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Any later chunk, and what the causal convolutions keep of it: shapes are as before."""
    features = list(memory)
    return coder(x, feat_cache=features, feat_idx=[0]), features


def frames_before(coder: nn.Module) -> list[int]:
    """How many frames each causal convolution sees before its own, in the order they are called."""
    convolutions = (m for m in coder.modules() if isinstance(m, nn.Conv3d))
    frames = (m.kernel_size[0] - m.stride[0] for m in convolutions)
    return [count for count in frames if count > 0]


def at_least(frames: int, x: Tensor) -> Tensor:
    """Zeros in front of x (B, C, F, h, w), as causal padding, where it has fewer frames."""
    return F.pad(x, (0, 0, 0, 0, frames - x.shape[2], 0)) if x.shape[2] < frames else x


class TiledDecoding:
    """A decoder on one clip, its last layers in tiles (height, width) of folded pixels."""

    def __init__(self, decoder: Any, tile: Tile) -> None:
        blocks = list(decoder.up_blocks)
        fine = next(i for i in range(len(blocks)) if _steps(blocks[i:]) == FINE_STEPS_UP)
        self.decoder, self.coarse, self.fine = decoder, blocks[:fine], blocks[fine:]
        scale = 2**FINE_STEPS_UP
        core = (tile[0] // scale, tile[1] // scale)
        self.windows = Windows(core, reach_up(self.fine), up=scale)
        self.memory, self.memories = Memory(decoder), {}

    def __call__(self, x: Tensor, first_chunk: bool) -> Tensor:
        seen = self.memory.since()
        x = self.decoder.mid_block(causal(self.decoder.conv_in, x, **seen), **seen)
        for block in self.coarse:
            x = block(x, **seen, first_chunk=first_chunk)
        layer = seen["feat_idx"][0]
        return self.windows.run(x, lambda part, i: self._finish(part, i, layer, first_chunk))

    def _finish(self, x: Tensor, number: int, layer: int, first_chunk: bool) -> Tensor:
        memory = self.memories.setdefault(number, Memory(self.decoder))
        with memory.fetched(x.device):
            seen = memory.since(layer)
            for block in self.fine:
                x = block(x, **seen, first_chunk=first_chunk)
            x = self.decoder.nonlinearity(self.decoder.norm_out(x))
            return causal(self.decoder.conv_out, x, **seen)


class TiledEncoding:
    """An encoder on one clip, its first layers in tiles (height, width) of folded pixels."""

    def __init__(self, encoder: Any, tile: Tile) -> None:
        blocks = list(encoder.down_blocks)
        coarse = next(i for i in range(len(blocks)) if _steps(blocks[:i]) == FINE_STEPS_DOWN)
        self.encoder, self.fine, self.coarse = encoder, blocks[:coarse], blocks[coarse:]
        scale = 2**FINE_STEPS_DOWN
        reach = -(-reach_down(self.fine) // scale) * scale
        self.windows = Windows(tile, reach, down=scale)
        self.memory, self.memories, self.layers = Memory(encoder), {}, 0

    def __call__(self, x: Tensor) -> Tensor:
        x = self.windows.run(x, self._begin)
        seen = self.memory.since(self.layers)
        for block in self.coarse:
            x = block(x, **seen)
        x = self.encoder.nonlinearity(self.encoder.norm_out(self.encoder.mid_block(x, **seen)))
        return causal(self.encoder.conv_out, x, **seen)

    def _begin(self, x: Tensor, number: int) -> Tensor:
        memory = self.memories.setdefault(number, Memory(self.encoder))
        with memory.fetched(x.device):
            seen = memory.since()
            x = causal(self.encoder.conv_in, x, **seen)
            for block in self.fine:
                x = block(x, **seen)
        self.layers = seen["feat_idx"][0]
        return x


def causal(conv: nn.Module, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
    """A causal convolution of a chunk after those that came before it, as the reference calls it.

    (Its blocks call their own; the first and the last convolution are called by hand.)
    """
    before, last = feat_cache[feat_idx[0]], x[:, :, -REMEMBERED:].clone()
    if before is not None and last.shape[2] < REMEMBERED:
        last = torch.cat([before[:, :, -1:], last], dim=2)
    feat_cache[feat_idx[0]] = last
    feat_idx[0] += 1
    return conv(x, before)


# ---- how far the layers see ----------------------------------------------------------------------


def reach_up(blocks: list[nn.Module]) -> int:
    """Pixels at the input of these and the last convolution, each side, that an output sees."""
    reach = 1
    for block in reversed(blocks):
        if _steps([block]):
            reach = -(-(reach + 1) // 2)
        reach += 2 * _residuals(block)
    return reach


def reach_down(blocks: list[nn.Module]) -> int:
    """Pixels at the input of the first convolution and these, each side, that an output sees."""
    reach = 0
    for block in reversed(blocks):
        if _steps([block]):
            reach = 2 * reach + 1
        reach += 2 * _residuals(block)
    return reach + 1


def _steps(blocks: list[nn.Module]) -> int:
    """Changes of resolution in some blocks of the reference."""
    return sum(type(m).__name__ == "WanResample" for block in blocks for m in block.modules())


def _residuals(block: nn.Module) -> int:
    """Residual blocks, of two 3x3 convolutions each, in a block of the reference."""
    return sum(type(m).__name__ == "WanResidualBlock" for m in block.modules())


# ---- pixels folded into channels -----------------------------------------------------------------


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, F, H*p, W*q) to (B, C*q*p, F, H, W), in the reference's order: columns before rows."""
    if patch == 1:
        return x
    folded = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return folded.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """`patchify` undone."""
    if patch == 1:
        return x
    folded = x.unflatten(1, (-1, patch, patch))
    return folded.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
