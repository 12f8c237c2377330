"""A component's config.json as a dataclass whose fields have the published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from ..errors import UsageError

Config = TypeVar("Config", bound="ComponentConfig")


@dataclass(frozen=True)
class ComponentConfig:
    """What a component's own dataclass inherits; `OF` says in messages what it configures."""

    OF: ClassVar[str]

    @classmethod
    def from_dict(cls: type[Config], config: Mapping[str, Any]) -> Config:
        """From a config.json; keys with a leading underscore are skipped.

        Raises `UsageError` naming unknown keys and those that are known.
        """
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise UsageError(
                f"{cls.OF} config has unknown {', '.join(unknown)}; known: {', '.join(known)}"
            )
        return cls(**values)
