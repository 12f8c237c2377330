"""Bytes of weights, by the headers of their files: a checkpoint's, and those on the device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoints.checkpoint import TRANSFORMERS
from ..checkpoints.shards import read_entries
from .costs.ledger import FP32

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

ITEMS = {"float32": 4, "bfloat16": 2, "float16": 2}
KEPT_FP32 = frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2"})  # of transformers
ALWAYS_FP32 = frozenset({"vae", "audio", "image_encoder"})
WITHOUT_WEIGHTS = frozenset({"scheduler", "tokenizer", "image_processor"})
STREAMED = frozenset({"encode", "denoise"})  # stages whose components may be streamed in blocks
BLOCK = re.compile(r"(?:.+\.)?(?:(?:vace_)?blocks|block|layers)\.\d+\.")
RESIDENT_BLOCKS = 2  # of a component whose blocks are streamed: at work, and on its way


def weight_bytes(checkpoint: Checkpoint, dtype: str) -> dict[str, int]:
    """Bytes of each component's weights once they are open."""
    return {name: sum(_tensors(place, name, dtype).values()) for name, place in _places(checkpoint)}


def _places(checkpoint: Checkpoint) -> Iterator[tuple[str, Path]]:
    for name in checkpoint.components:
        if name not in WITHOUT_WEIGHTS:
            yield name, checkpoint.component(name).folder


@cache
def _tensors(place: Path, name: str, dtype: str) -> dict[str, int]:
    """Bytes of each tensor, by published name, as it is held."""
    fp32 = name in ALWAYS_FP32
    return {
        tensor: prod(entry.shape) * (FP32 if fp32 or _kept(tensor) else ITEMS[dtype])
        for tensor, entry in read_entries(place).items()
    }


def _kept(tensor: str) -> bool:
    return not KEPT_FP32.isdisjoint(tensor.split("."))


def resident_bytes(
    checkpoint: Checkpoint, weights: Mapping[str, int], dtype: str, offload: str
) -> dict[str, int]:
    """Bytes of weights on the device in each stage."""
    users = {
        "shown": ("vae",),
        "encode": ("text_encoder", "image_encoder"),
        "denoise": TRANSFORMERS,
        "decode": ("vae",),
        "sound": ("audio",),
    }
    if offload == "none":
        return dict.fromkeys(users, sum(weights.values()))
    found = {}
    for stage, names in users.items():
        sizes = [weights.get(name, 0) for name in names]
        if stage in STREAMED and offload == "block":
            held = [name for name in names if name in weights]
            sizes = [_streamed(checkpoint, name, dtype) for name in held]
        found[stage] = max(sizes, default=0)
    return found


def _streamed(checkpoint: Checkpoint, name: str, dtype: str) -> int:
    """Bytes of a component whose blocks pass through the device."""
    rest, blocks = 0, Counter()
    for tensor, size in _tensors(checkpoint.component(name).folder, name, dtype).items():
        if block := BLOCK.match(tensor):
            blocks[block.group()] += size
        else:
            rest += size
    return rest + RESIDENT_BLOCKS * max(blocks.values(), default=0)
