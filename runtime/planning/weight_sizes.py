"""Bytes of weights, by the headers of their files: a checkpoint's, and those on the device."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .. import registry
from ..checkpoints.checkpoint import TRANSFORMERS
from ..checkpoints.shards import read_entries
from ..execution.modes import RESIDENT_BLOCKS
from ..ledger import FP32

if TYPE_CHECKING:
    from ..checkpoints.checkpoint import Checkpoint

ITEMS = {"float32": 4, "bfloat16": 2, "float16": 2}
ALWAYS_FP32 = frozenset({"vae", "audio", "image_encoder"})
WITHOUT_WEIGHTS = frozenset({"scheduler", "tokenizer", "image_processor"})
STREAMED = frozenset({"encode", "denoise"})  # stages whose components may be streamed in blocks
# Lists of a transformer stand at the top of it; of an encoder, anywhere.
BLOCK = re.compile(r"(?:\w*blocks|(?:.+\.)?(?:block|layers))\.\d+\.")


def weight_bytes(checkpoint: Checkpoint, dtype: str) -> dict[str, int]:
    """Bytes of each component's weights once they are open."""
    names = (name for name in checkpoint.components if name not in WITHOUT_WEIGHTS)
    return {name: sum(_tensors(checkpoint, name, dtype).values()) for name in names}


def _tensors(checkpoint: Checkpoint, name: str, dtype: str) -> Mapping[str, int]:
    """Bytes of each tensor of a component, by published name, as it is held."""
    component = checkpoint.component(name)
    if name in ALWAYS_FP32:
        return _bytes(component.folder, FP32)
    known = registry.TRANSFORMERS.get(component.class_name)
    kept = frozenset() if known is None else registry.at(known.sizes).KEEP_FP32
    return _bytes(component.folder, ITEMS[dtype], kept)


@cache
def _bytes(place: Path, item: int, kept: frozenset[str] = frozenset()) -> Mapping[str, int]:
    """Of items of so many bytes, but of float32 where a part of the name is to be kept so."""
    return {
        tensor: prod(entry.shape) * (item if kept.isdisjoint(tensor.split(".")) else FP32)
        for tensor, entry in read_entries(place).items()
    }


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
    for tensor, size in _tensors(checkpoint, name, dtype).items():
        if block := BLOCK.match(tensor):
            blocks[block.group()] += size
        else:
            rest += size
    return rest + RESIDENT_BLOCKS * max(blocks.values(), default=0)
