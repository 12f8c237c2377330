"""How often a video was started without a word of how that ended: the process was killed, or the
video killed it. One that does so again and again is not tried for ever."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from ..errors import KinemaError
from .databases import log_failure
from .making import RUN
from .videos import IN_PROGRESS, Video

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("kinema.serve")
STARTED = f"started{RUN}"  # as old as the last start


class Crashed(KinemaError):
    """The process has ended too often while this video was made."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the server's process ended {count} times while this video was made")


class Attempts:
    """Counts in `Video.attempts`: once for each process, until the video ends or gets further."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._counted: set[str] = set()

    def take_up(self, video: Video) -> None:
        """One that was in progress when a process ended. What it saved since its start speaks for
        it, however the process ended."""
        folder = self.server.folder(video.id)
        started, *saved = (_times(folder, name) for name in (STARTED, f"run-*{RUN}"))
        if started and saved[0] and max(saved[0]) > started[0]:
            video.attempts = 0

    def begin(self, video: Video) -> None:
        """Count a start, in the transaction that notes it."""
        if video.id not in self._counted:
            video.attempts += 1

    def begun(self, video: Video) -> None:
        """After that. Raises `Crashed` where it was one too many."""
        self._counted.add(video.id)
        if video.attempts > self.server.settings.max_starts:
            raise Crashed(video.attempts - 1)
        self.server.folder(video.id).joinpath(STARTED).touch()

    def forgive(self) -> None:
        """The process is asked to stop: that is nobody's fault."""
        counted = Video.id.in_(self._counted), Video.status == IN_PROGRESS
        fewer = update(Video).where(*counted).values(attempts=Video.attempts - 1)
        try:
            with self.server.store.session() as session:
                session.execute(fewer)
        except SQLAlchemyError as error:
            log_failure(log, "forgiving starts", error)

    def clear(self, id: str) -> None:
        """The video has ended."""
        self._counted.discard(id)
        for file in self.server.folder(id).glob(f"*{RUN}"):
            file.unlink(missing_ok=True)


def _times(folder: Path, name: str) -> list[int]:
    return [file.stat().st_mtime_ns for file in folder.glob(name)]
