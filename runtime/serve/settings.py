"""How a server is set up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UsageError
from ..provenance.marking import Provenance
from .limits import Limits
from .moderation import LEVELS, MINORS

# What code for the hosted API asks for; they open the first model unless an alias says otherwise.
HOSTED = (
    "sora-2",
    "sora-2-pro",
    "sora-2-2025-10-06",
    "sora-2-2025-12-08",
    "sora-2-pro-2025-10-06",
)

VISIBLE = Provenance(visible=True)


@dataclass(frozen=True)
class Settings:
    """Where a server keeps its videos, and what it allows.

    data: the folder of videos, and of the database unless `database_url` names one. key_file: who
    may ask; without one everybody may. at_once: videos that take turns; the others wait.
    save_seconds: how much work of a running video a kill may cost. keep_seconds: how long finished
    ones stay; None for ever. quota_bytes: what all of them may take; when it is used up, and when
    less than `free_bytes` of the disk are left, new ones are refused. allow_private: let webhooks
    and pictures be at private addresses. provenance: how files say where they come from.
    moderation: which prompts are refused by the word list: "off" none, "minors" what would show
    minors sexually, "strict" whatever falls into a category. max_starts: a video with which the
    process ended so often, before more of it was saved, fails.
    """

    data: Path
    database_url: str | None = None
    key_file: Path | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    at_once: int = 4
    save_seconds: float = 5.0
    keep_seconds: int | None = None
    quota_bytes: int | None = None
    free_bytes: int = 64 << 20
    allow_private: bool = False
    limits: Limits = field(default_factory=Limits)
    provenance: Provenance = VISIBLE
    moderation: str = MINORS
    max_starts: int = 3

    def __post_init__(self) -> None:
        if self.moderation not in LEVELS:
            known = ", ".join(LEVELS)
            raise UsageError(f"moderation is {self.moderation!r}; known are {known}")

    @property
    def url(self) -> str:
        """The database's."""
        return self.database_url or f"sqlite:///{self.data / 'kinema.db'}"
