"""Options that belong together: a dataclass in place of each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from typing import Any


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes dataclasses, as one that takes their fields: Typer reads options off a
    signature, in this order."""
    own = inspect.signature(command, eval_str=True).parameters
    kinds = {name: p.annotation for name, p in own.items() if isinstance(p.annotation, type)}
    groups = {
        name: inspect.signature(kind, eval_str=True).parameters
        for name, kind in kinds.items()
        if is_dataclass(kind)
    }

    @wraps(command)
    def run(**options: Any) -> None:
        made = {
            name: kinds[name](**{field: options.pop(field) for field in fields})
            for name, fields in groups.items()
        }
        command(**made, **options)

    every = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        for option in (groups[name].values() if name in groups else [parameter])
    ]
    run.__signature__ = inspect.Signature(every)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {option.name: option.annotation for option in every}
    del run.__wrapped__
    return run
