"""Nested tensors as flat ones with names, and back: `text.keys.0` is the first block's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def flatten(name: str, value: Any) -> dict[str, Tensor]:
    """Every tensor in lists, dicts and named tuples; numbers become tensors, None is left out."""
    return dict(_walk(name, value))


def rebuild(like: Any, name: str, tensors: Mapping[str, Tensor]) -> Any:
    """What `flatten(name, like)` was made of, with other tensors in it."""
    if like is None:
        return None
    if isinstance(like, (Tensor, int, float)):
        return tensors[name]
    if isinstance(like, Mapping):
        return {key: rebuild(like[key], _join(name, key), tensors) for key in like}
    parts = [rebuild(part, _join(name, key), tensors) for key, part in _parts(like)]
    return type(like)(*parts) if hasattr(like, "_fields") else parts


def _walk(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if value is None:
        return
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (int, float)):
        yield name, torch.tensor(float(value))
    else:
        for key, part in _parts(value):
            yield from _walk(_join(name, key), part)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    else:
        yield from ((str(i), part) for i, part in enumerate(value))


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
