"""The least time of a forward of a Wan transformer: what a device reaches, applied to its work.

Each operation takes at least its FLOPs at the rate of a dense product, and at least its bytes, each
input read once and each output written once, at the rate of a copy; elementwise work between two
products is one pass. The floor is the sum of the larger of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..runtime.checkpoints.presets import TEXT_LENGTH

ITEM = 2  # bytes of bf16


class Operation(NamedTuple):
    """Work of one operation of a block."""

    name: str
    flops: float
    bytes: float

    def seconds(self, tflops: float, gbps: float) -> float:
        """The least it takes."""
        return max(self.flops / tflops / 1e12, self.bytes / gbps / 1e9)


def floor_seconds(config: dict[str, Any], tokens: int, tflops: float, gbps: float) -> float:
    """Of one forward of one video, whose blocks are nearly all of it."""
    block = sum(work.seconds(tflops, gbps) for work in operations(config, tokens))
    return config["num_layers"] * block


def flops(config: dict[str, Any], tokens: int) -> float:
    """Of one forward of one video."""
    return config["num_layers"] * sum(work.flops for work in operations(config, tokens))


def operations(config: dict[str, Any], tokens: int) -> Iterator[Operation]:
    """Those of a block; the residual after cross attention rides along with the next norm."""
    wide, ffn = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    one_pass = tokens * wide * ITEM

    def product(name: str, inner: int, outer: int, rows: int = tokens) -> Operation:
        moved = rows * inner + inner * outer + rows * outer
        return Operation(name, 2 * rows * inner * outer, moved * ITEM)

    def elementwise(name: str, passes: int) -> Operation:
        return Operation(name, 0, passes * one_pass)

    def attention(name: str, keys: int) -> Operation:
        return Operation(name, 4 * tokens * keys * wide, 2 * one_pass + 2 * keys * wide * ITEM)

    yield elementwise("norm, scale and shift", 2)
    yield product("queries, keys and values", wide, 3 * wide)
    yield elementwise("norm of queries and keys, rotation", 4)
    yield attention("self-attention", tokens)
    yield product("projection", wide, wide)
    yield elementwise("gated residual", 3)
    yield elementwise("norm", 2)
    yield product("queries of cross attention", wide, wide)
    yield product("keys and values of the text", wide, 2 * wide, TEXT_LENGTH)
    yield elementwise("norm of queries", 2)
    yield attention("cross attention", TEXT_LENGTH)  # pads are keys too
    yield product("projection", wide, wide)
    yield elementwise("residual, norm, scale and shift", 4)
    yield product("feed-forward, up", wide, ffn)
    yield product("feed-forward, down", ffn, wide)
    yield elementwise("gated residual", 3)
