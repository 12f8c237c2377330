"""Removes videos and files that have expired, and folders that belong to no video."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from typing import TYPE_CHECKING

from sqlalchemy import select

from . import characters, files
from .databases import log_failure
from .tables import now
from .videos import Video

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("kinema.serve")
EVERY = 30.0  # seconds
LEFT_ALONE = 3600  # seconds that a folder may be without a video: one is being accepted


class Janitor:
    """Comes by every so often, in a thread."""

    def __init__(self, server: Server) -> None:
        self.server, self._stopping = server, threading.Event()
        self._thread = threading.Thread(target=self._run, name="kinema-janitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self) -> None:
        """One round."""
        server = self.server
        with server.store.session() as session:
            expired = session.scalars(select(Video).where(Video.expires_at <= now()))
            gone = [(video.owner, video.id) for video in expired]
        for owner, id in gone:
            server.delete(owner, id)
        with server.store.session() as session:
            known = set(session.scalars(select(Video.id)))
        for folder in (server.settings.data / "videos").iterdir():
            lone = folder.name not in known and folder.name not in server.runs.live
            if lone and time.time() - folder.stat().st_mtime > LEFT_ALONE:
                shutil.rmtree(folder, ignore_errors=True)
        files.sweep(server, LEFT_ALONE)
        characters.sweep(server, LEFT_ALONE)

    def _run(self) -> None:
        while not self._stopping.wait(EVERY):
            try:
                self.sweep()
            except Exception as error:
                log_failure(log, "sweeping", error)
