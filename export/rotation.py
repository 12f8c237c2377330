"""The rotation of queries and keys in ONNX: angles of every token, made once, and their turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from .nodes import Opset, Value, index, ints, number, once

Size = Value | int  # of a graph, or known


def turning(
    op: Opset, q: Value, cos: Value, sin: Value, grid: Sequence[Size], pairs: Sequence[int],
    start: Size, interleaved: bool,
) -> Callable[[Value], Value]:  # fmt: skip
    """What turns x (B, N, L, D) of the tokens of q (B, L, N, D)."""
    by_node = op.version >= 23 and 2 * sum(pairs) == q.shape[3]
    make = _angles_of_samples if by_node else _angles
    sizes = (size if isinstance(size, int) else id(size) for size in (*grid, start))
    key = (by_node, id(sin), *sizes, *map(str, q.shape[:2]), q.shape[3])
    cos, sin = once(cos, key, lambda: make(op, q, cos, sin, grid, pairs, start))
    if by_node:
        return lambda x: op.RotaryEmbedding(x, cos, sin, interleaved=int(interleaved))
    return lambda x: _turn(op, x, cos, sin, interleaved)


def _angles(
    op: Opset, q: Value, cos: Value, sin: Value, grid: Sequence[Size], pairs: Sequence[int],
    start: Size,
) -> list[Value]:  # fmt: skip
    """Cosines and sines (1 or N, L, D/2) of every token, from tables an axis; text stays still."""
    still = None if _is_whole(q, grid, start) else _still(op, q, grid, start)
    grid = [_size(op, size) for size in grid]
    angles = []
    for table, fill in ((cos, 1.0), (sin, 0.0)):
        hidden = _of_tokens(op, table, grid, pairs)
        if still is not None:
            hidden = op.Pad(hidden, still, number(op, fill), ints(op, [0]))
        hidden = op.Reshape(hidden, ints(op, [0, -1, q.shape[3] // 2]))
        angles.append(op.Transpose(hidden, perm=[1, 0, 2]))
    return angles


def _angles_of_samples(op: Opset, q: Value, *rope: Any) -> list[Value]:
    """The same for each sample (B, L, D/2), as the node of opset 23 wants them."""
    samples = op.Concat(op.Shape(q, start=0, end=1), ints(op, [1, 1]), axis=0)
    return [op.Expand(table, samples) for table in _angles(op, q, *rope)]


def _of_tokens(op: Opset, table: Value, grid: Sequence[Value], pairs: Sequence[int]) -> Value:
    """A compact table as (f*h*w, sum(pairs))."""
    spread = op.Concat(*grid, ints(op, [1]), axis=0)
    axes, begin = [], ints(op, [0])
    for axis, (size, count) in enumerate(zip(grid, pairs, strict=True)):
        if not count:
            continue
        end = op.Add(begin, op.Mul(size, ints(op, [count])))
        shape = [-1 if other == axis else 1 for other in range(3)]
        part = op.Reshape(op.Slice(table, begin, end, ints(op, [0])), ints(op, [*shape, count]))
        axes.append(op.Expand(part, spread))
        begin = end
    return op.Reshape(op.Concat(*axes, axis=-1), ints(op, [-1, sum(pairs)]))


def _still(op: Opset, q: Value, grid: Sequence[Size], start: Size) -> Value:
    """How many tokens before and after the grid's are not turned."""
    start, tokens = _size(op, start), ints(op, [1])
    for size in grid:
        tokens = op.Mul(tokens, _size(op, size))
    after = op.Sub(op.Sub(op.Shape(q, start=1, end=2), tokens), start)
    return op.Concat(start, after, axis=0)


def _is_whole(q: Value, grid: Sequence[Size], start: Size) -> bool:
    """Whether the grid is known to be all tokens; symbolic sizes are told by their expressions."""
    known = [size for size in map(_traced, (start, *grid)) if size is not None]
    if len(known) <= len(grid) or known[0] != 0:
        return False
    tokens, length = prod(known[1:]), q.shape[1]
    return str(getattr(tokens, "node", tokens)) == str(getattr(length, "value", length))


def _traced(size: Size) -> int | torch.SymInt | None:
    """The number behind a size, as torch.export traced it; None if that is not known."""
    if isinstance(size, int):
        return size
    producer = size.producer()
    node = size.meta.get("node") or (producer.meta.get("node") if producer else None)
    found = None if node is None else node.meta.get("val")
    return found if isinstance(found, (int, torch.SymInt)) else None


def _size(op: Opset, size: Size) -> Value:
    """A size as a tensor (1,)."""
    return ints(op, [size]) if isinstance(size, int) else op.Reshape(size, ints(op, [-1]))


def _turn(op: Opset, x: Value, cos: Value, sin: Value, interleaved: bool) -> Value:
    """x (B, N, L, D) turned by angles (1 or N, L, D/2)."""
    shape = op.Shape(x)
    axis, pairs = (-1, [-1, 2]) if interleaved else (-2, [2, -1])
    hidden = op.Reshape(x, op.Concat(op.Shape(x, start=0, end=3), ints(op, pairs), axis=0))
    first, second = (op.Gather(hidden, index(op, i), axis=axis) for i in (0, 1))
    turned = (
        op.Sub(op.Mul(first, cos), op.Mul(second, sin)),
        op.Add(op.Mul(first, sin), op.Mul(second, cos)),
    )
    joined = op.Concat(*(op.Unsqueeze(part, ints(op, [axis])) for part in turned), axis=axis)
    return op.Reshape(joined, shape)
