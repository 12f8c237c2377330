"""What works on accepted videos: it starts as many as may run, follows them, and sets them down.

The database says which there are; after a kill those that were running go on from what they saved.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from ..errors import Cancelled, KinemaError, UsageError
from ..sessions.scheduler import StepScheduler
from .attempts import Attempts, Crashed
from .databases import log_failure, trouble_of
from .live import Live
from .making import RUN, Making, Paused
from .orders import Order
from .tables import now
from .videos import COMPLETED, FAILED, IN_PROGRESS, PENDING, QUEUED, Video, locked

if TYPE_CHECKING:
    from ..engine import Engine
    from .server import Server

log = logging.getLogger("kinema.serve")


class Bench:
    """What a `StepScheduler` asks of an engine, for work that brings its own session."""

    def __init__(self, engine: Engine) -> None:
        self.device = engine.device

    def session(self, making: Making) -> Making:
        return making


class Runs:
    """The videos at work, at most `at_once` of them and `max_running` of one owner."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.schedulers: Mapping[str, StepScheduler] = {
            name: StepScheduler(
                Bench(engine),  # pyright: ignore[reportArgumentType]  # all that it asks of one
                engine.scheduler.max_batch,
                engine.scheduler.memory_limit,
            )
            for name, engine in server.engines.items()
        }
        self.live: dict[str, Live] = {}
        self.attempts = Attempts(server)
        self._lock, self._changed = threading.RLock(), threading.Condition()
        self._ended: list[Live] = []
        self._unwritten: list[tuple[Live, BaseException | None]] = []
        self._woken, self.stopping = False, False
        self._thread = threading.Thread(target=self._run, name="kinema-runs", daemon=True)

    def start(self) -> None:
        """Take up what was accepted, in the order of its coming."""
        with self.server.store.session() as session:
            for video in session.scalars(select(Video).where(Video.status == IN_PROGRESS)):
                video.status = QUEUED  # its saved run is in its folder
                self.attempts.take_up(video)
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        """Look for what can be started."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def cancel(self, id: str) -> None:
        """Stop a video before its next step."""
        with self._lock:
            live = self.live.get(id)
            if live is not None and live.job is not None:
                live.job.cancel()

    def stop(self, timeout: float = 60.0) -> None:
        """Save what is running and start nothing more; returns when it is saved."""
        with self._lock:
            self.stopping = True
            running = list(self.live.values())
            for live in running:
                if live.making is not None:
                    live.making.stopping = True
        self.attempts.forgive()
        until = time.monotonic() + timeout
        for live in running:
            while live.job is not None and not live.job.done() and time.monotonic() < until:
                time.sleep(0.02)
        for scheduler in self.schedulers.values():
            scheduler.close()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._woken, timeout=5.0)
                self._woken, ended = False, self._ended
                self._ended = []
            unwritten, self._unwritten = self._unwritten, []
            for live, error in unwritten:
                self._safely(lambda live=live, error=error: self._set_down(live, error))
            for live in ended:
                self._safely(lambda live=live: self._end(live))
            if self.stopping and not self.live:
                return
            if not self.stopping:
                self._safely(self._fill)

    def _safely(self, work: Callable[[], None]) -> None:
        """A database that fails now may work later; whoever waits is looked at again."""
        try:
            work()
        except Exception as error:
            log_failure(log, "work on accepted videos", error)

    def _fill(self) -> None:
        """Start those that may run, the first that came first.

        One in progress but not at work is one whose start was noted when the connection broke.
        """
        self.server.store.claim.hold()
        waits = Video.status.in_(PENDING), Video.id.not_in(list(self.live))
        with self.server.store.session() as session:
            waiting = list(session.scalars(select(Video).where(*waits).order_by(Video.number)))
        for video in waiting:
            if self._in_doubt(video):
                return
            if self._may_run(video.owner):
                self._start(video)

    def _in_doubt(self, video: Video) -> bool:
        """Whether nothing may start yet: one that may have ended the process before has company
        only of those that have got further meanwhile, so that it takes no other one with it."""
        unproven = [live for live in self.live.values() if not live.proven]
        return any(live.suspect for live in unproven) or bool(video.attempts and unproven)

    def _may_run(self, owner: str) -> bool:
        own = sum(live.owner == owner for live in self.live.values())
        limits = self.server.settings.limits
        return len(self.live) < self.server.settings.at_once and own < limits.max_running

    def _start(self, video: Video) -> None:
        server, live = self.server, Live(video.id, video.owner, video.expected)
        with server.store.session() as session:
            found = locked(session, video.id)
            if found is None or found.status not in PENDING:
                return  # deleted or cancelled meanwhile
            found.status, live.suspect = IN_PROGRESS, found.attempts > 0
            self.attempts.begin(found)
        with self._lock:
            self.live[video.id] = live
        try:
            self.attempts.begun(found)
            name = server.resolve(video.model)
            live.making = Making(
                server.engines[name],
                Order(**video.order),
                server.folder(video.id),
                server.settings.save_seconds,
                live.tell,
                live.watched,
                server.settings.provenance,
            )
            live.job = self.schedulers[name].submit(
                live.making  # pyright: ignore[reportArgumentType]  # what a bench makes sessions of
            )
            live.job.listen(lambda event: self._hear(live, event))
        except Exception as error:
            self._set_down(live, error)
            return
        with server.store.session() as session:  # a cancel or DELETE that came before the job did
            status = session.scalar(select(Video.status).where(Video.id == video.id))
        if status != IN_PROGRESS:
            live.job.cancel()

    def _hear(self, live: Live, event: Any) -> None:
        if event is None:
            with self._changed:
                self._ended.append(live)
                self._woken = True
                self._changed.notify()

    def _end(self, live: Live) -> None:
        error = None
        try:
            assert live.job is not None
            live.job.result(0)
        except BaseException as failure:
            error = failure
        self._set_down(live, error)

    # ---- the outcome -----------------------------------------------------------------------------

    def _set_down(self, live: Live, error: BaseException | None) -> None:
        """Write what became of a video, and make room for another.

        While the database does not answer, it is kept to be written later.
        """
        kept = False
        try:
            if not isinstance(error, Paused) and not (
                self.stopping and isinstance(error, Cancelled)
            ):
                self._write(live, error)
        except SQLAlchemyError as failure:
            kept = trouble_of(failure) is not None and not self.stopping
            raise
        finally:
            if kept:
                self._unwritten.append((live, error))
            else:
                with self._lock:
                    self.live.pop(live.id, None)
                self.wake()

    def _write(self, live: Live, error: BaseException | None) -> None:
        server, folder = self.server, self.server.folder(live.id)
        with server.store.session() as session:
            video = locked(session, live.id)
            if video is not None and video.status in PENDING:
                self._note(video, live, error)
                kind = f"video.{video.status}"
                server.webhooks.ended(session, video.owner, kind, video.id)
        if video is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif live.making is not None:
            live.making.finish()
        self.attempts.clear(live.id)
        server.metrics.ended("deleted" if video is None else video.status, live.making)
        server.webhooks.wake()

    def _note(self, video: Video, live: Live, error: BaseException | None) -> None:
        if error is not None:
            video.status, video.error = FAILED, _error_of(error)
            level = logging.INFO if isinstance(error, KinemaError) else logging.ERROR
            log.log(level, "video %s failed: %s", video.id, error, exc_info=error)
            return
        settings, completed_at = self.server.settings, now()
        video.status, video.completed_at = COMPLETED, completed_at
        if settings.keep_seconds is not None:
            video.expires_at = completed_at + settings.keep_seconds
        assert live.making is not None
        video.report = live.making.served
        folder = self.server.folder(video.id)
        video.bytes = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != RUN)


def _error_of(error: BaseException) -> dict[str, Any]:
    """A failed video's error, without what is inside for one that was not expected."""
    if isinstance(error, Cancelled):
        return {"code": "cancelled", "message": "the video was cancelled"}
    if isinstance(error, Crashed):
        return {"code": "crashed", "message": str(error)}
    if isinstance(error, UsageError):
        return {"code": "invalid_request", "message": str(error)}
    if isinstance(error, KinemaError):
        return {"code": "generation_failed", "message": str(error)}
    return {"code": "internal_error", "message": f"unexpected {type(error).__name__}"}
