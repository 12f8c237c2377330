"""Shapes with names in them, such as (batch, 16, frames, 2*rows): what sizes mean, and back."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping, Sequence

from ..errors import UsageError
from .manifest import Port

AFFINE = re.compile(r"(?:(\d+)\*)?([a-z_]+)(?: \+ (\d+))?")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def sizes_of(ports: Sequence[Port], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What each name in the inputs' shapes stands for, given the inputs that there are.

    Raises `UsageError` for an input that does not fit, saying what does.
    """
    sizes: dict[str, int] = {}
    for port in ports:
        shape = shapes[port.name]
        if len(shape) != len(port.shape):
            raise UsageError(f"{port.name} has shape {tuple(shape)}; {_shown(port.shape)} works")
        for wanted, length in zip(port.shape, shape, strict=True):
            if not _fits(wanted, length, sizes):
                told = f" with {sizes}" if sizes else ""
                raise UsageError(
                    f"{port.name} has shape {tuple(shape)}; {_shown(port.shape)} works{told}"
                )
    return sizes


def shape_at(port: Port, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input or output where sizes are known."""
    return tuple(evaluate(axis, sizes) for axis in port.shape)


def evaluate(axis: int | str, sizes: Mapping[str, int]) -> int:
    """A sum, difference, product or whole quotient of sizes and numbers."""
    return axis if isinstance(axis, int) else _value(ast.parse(axis, mode="eval").body, sizes)


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    raise ValueError(f"{ast.unparse(node)!r} is no size")


def _fits(wanted: int | str, length: int, sizes: dict[str, int]) -> bool:
    """Whether an axis is as wanted; a name that is met for the first time is solved for."""
    if isinstance(wanted, int):
        return wanted == length
    parts = AFFINE.fullmatch(wanted)
    assert parts is not None
    factor, name, more = parts.groups()
    size, rest = divmod(length - int(more or 0), int(factor or 1))
    return rest == 0 and sizes.setdefault(name, size) == size


def _shown(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
