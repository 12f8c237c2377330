"""A video at work in this process: what it has told, who looks on, and how long it may take yet."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..sessions.job import Job
    from .making import Making

WATCHED_SECONDS = 3.0  # how long a preview is made for someone who has not asked again
MEASURED = 5  # of 100: progress from which the rest is estimated by what was spent


@dataclass(eq=False)
class Live:
    """A video that is being made in this process."""

    id: str
    owner: str
    expected: float
    started: float = field(default_factory=time.monotonic)
    making: Making | None = None
    job: Job | None = None
    progress: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    preview: tuple[int, dict[str, Any]] = (0, {})  # and how many there were
    watched_at: float = -WATCHED_SECONDS
    suspect: bool = False  # the process has ended before while it was made

    def tell(self, kind: str, values: dict[str, Any]) -> None:
        """Note an event; of previews the last one is kept."""
        if kind == "preview":
            self.preview = (self.preview[0] + 1, values)
            return
        self.progress = max(self.progress, values["progress"])
        self.events.append(values)

    def watch(self) -> None:
        """Someone looks on."""
        self.watched_at = time.monotonic()

    def watched(self) -> bool:
        return time.monotonic() - self.watched_at < WATCHED_SECONDS

    @property
    def proven(self) -> bool:
        """Whether it has got further than any start before."""
        return self.making is not None and self.making.saved

    @property
    def seconds_left(self) -> float:
        """As planned until there is something to measure."""
        spent = time.monotonic() - self.started
        if self.progress < MEASURED:
            return max(0.5, self.expected - spent)
        return spent * (100 - self.progress) / self.progress
