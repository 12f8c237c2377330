"""What works on batches: it reads them, hands their lines to be made, and notes what came of them.

A batch is a row, each of its lines another, and videos have their ids before they are accepted: a
kill at any moment costs no line, and makes none twice.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from ..errors import KinemaError, UsageError
from . import batch_files, batch_results, batches, files, ordering, videos
from .asked import Created, check
from .batches import (
    ACCEPTED,
    AT_ONCE,
    CANCELLING,
    COMPLETED,
    FAILED,
    OPEN,
    WAITING,
    Batch,
    BatchLine,
)
from .databases import log_failure
from .errors import APIError
from .tables import new_id, now
from .videos import PENDING, Video

if TYPE_CHECKING:
    from .server import Server

log = logging.getLogger("kinema.serve")
LOOK_EVERY, IDLE = 0.5, 30.0  # seconds, with batches under way and without
AFTER_FAILURE = 5.0
OPEN_LINES = (WAITING, ACCEPTED)
LATER = (429, 503, 507)  # refusals that end by themselves


class Batching:
    """One thread, for all batches, which come before each other as their requests did."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="kinema-batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What was not done is done after the next start."""
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        self._woken.set()

    def round(self) -> float:
        """Take every batch as far as it goes now; seconds until there may be more to do."""
        with self.server.store.session() as session:
            query = select(Batch).where(Batch.status.in_(OPEN)).order_by(Batch.number)
            found = list(session.scalars(query))
        wait = LOOK_EVERY if found else IDLE
        for batch in found:
            if self._stopping.is_set():
                break
            try:
                self._advance(batch)
            except Exception as error:
                log_failure(log, f"work on batch {batch.id}", error)
                wait = AFTER_FAILURE
        return wait

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait = AFTER_FAILURE
            try:
                wait = self.round()
            except Exception as error:
                log_failure(log, "work on batches", error)
            self._woken.wait(wait)
            self._woken.clear()

    def _advance(self, batch: Batch) -> None:
        if batch.status == batches.VALIDATING:
            self._validate(batch)
            return
        self._collect(batch)
        if batch.status == CANCELLING:
            self._drop(batch, "batch_cancelled")
        elif batch.expired_at or now() >= batch.expires_at:
            self._expire(batch)
        else:
            self._feed(batch)
        if not self._lines(batch, OPEN_LINES, 1):
            batch_results.finish(self.server, batch)

    def _lines(self, batch: Batch, states: tuple[str, ...], count: int) -> list[BatchLine]:
        """The first ones in these states."""
        query = select(BatchLine).where(BatchLine.batch_id == batch.id)
        query = query.where(BatchLine.status.in_(states)).order_by(BatchLine.line)
        with self.server.store.session() as session:
            return list(session.scalars(query.limit(count)))

    # ---- validating ------------------------------------------------------------------------------

    def _validate(self, batch: Batch) -> None:
        """Read the file: rows of its lines, or what is wrong with it."""
        found = batch_files.Reader(files.path(self.server, batch.input_file_id))
        lines = self._read(batch, found)
        store = self.server.store
        with store.session() as session:  # of an attempt that was cut short
            session.execute(delete(BatchLine).where(BatchLine.batch_id == batch.id))
        for rows in batch_files.chunks(lines, AT_ONCE):
            if self._stopping.is_set():
                return
            with store.session() as session:
                session.execute(insert(BatchLine), rows)
        with store.session() as session:
            kept = batches.locked(session, batch.id)
            if kept.status != batches.VALIDATING:
                return  # cancelled meanwhile
            if not found.errors:
                kept.model = found.model
                kept.enter(batches.IN_PROGRESS)
                return
            session.execute(delete(BatchLine).where(BatchLine.batch_id == batch.id))
            kept.counts = {"total": found.count, COMPLETED: 0, FAILED: 0}
            kept.errors = found.errors
            kept.enter(FAILED)
            self.server.webhooks.ended(session, kept.owner, "batch.failed", kept.id)
        self.server.webhooks.wake()

    def _read(self, batch: Batch, found: batch_files.Reader) -> Iterator[dict[str, Any]]:
        """Rows; a request whose fields do not fit has failed already, and the others go on."""
        for line in found:
            row = {"batch_id": batch.id, "line": line.number, "custom_id": line.custom_id}
            row |= {"video_id": new_id("video"), "body": line.text, "outcome": None}
            try:
                found.models.add(_checked(line.body).model)
                yield {**row, "status": WAITING}
            except APIError as error:
                outcome = batch_results.refused(line.custom_id, error)
                yield {**row, "status": FAILED, "outcome": outcome, "body": ""}

    # ---- in progress -----------------------------------------------------------------------------

    def _collect(self, batch: Batch) -> None:
        """Note what became of videos that have ended."""
        pending = select(Video.id).where(Video.status.in_(PENDING))
        accepted = BatchLine.batch_id == batch.id, BatchLine.status == ACCEPTED
        query = select(BatchLine).where(*accepted, BatchLine.video_id.not_in(pending))
        query = query.limit(AT_ONCE)
        while not self._stopping.is_set():
            with self.server.store.session() as session:
                ended = list(session.scalars(query))
                for line in ended:
                    video = session.scalar(select(Video).where(Video.id == line.video_id))
                    done = video is not None and video.status == videos.COMPLETED
                    line.status = COMPLETED if done else FAILED
                    line.outcome = batch_results.made(line.custom_id, video)
            if not ended:
                return

    def _feed(self, batch: Batch) -> None:
        """Hand over lines while nothing else of the owner's waits: single requests go first."""
        while self._may_feed(batch.owner) and not self._stopping.is_set():
            lines = self._lines(batch, (WAITING,), 1)
            if not lines or not self._hand_over(batch, lines[0]):
                return

    def _may_feed(self, owner: str) -> bool:
        with self.server.store.session() as session:
            own, all = videos.waiting(session, owner), videos.waiting(session)
        return own == 0 and all < self.server.settings.at_once

    def _hand_over(self, batch: Batch, line: BatchLine) -> bool:
        """Have a line made; False where it has to wait."""
        try:
            self._accept(batch, line)
        except UsageError as error:
            self._refuse(line, APIError(400, str(error), param=getattr(error, "param", None)))
        except APIError as error:
            if error.status in LATER:
                return False
            self._refuse(line, error)
        except (KinemaError, OSError, SQLAlchemyError):
            raise  # a full disk, say: not the line's fault
        except Exception as error:
            log.error("line %d of batch %s failed", line.line, batch.id, exc_info=error)
            self._refuse(line, APIError(500, f"unexpected {type(error).__name__}"))
        else:
            self._set(line, status=ACCEPTED, body="")
        return True

    def _accept(self, batch: Batch, line: BatchLine) -> None:
        server = self.server
        with server.store.session() as session:
            if session.scalar(select(Video.id).where(Video.id == line.video_id)):
                return  # before a kill
        shutil.rmtree(server.folder(line.video_id), ignore_errors=True)
        ordering.create(server, batch.owner, _checked(json.loads(line.body)), line.video_id)

    def _refuse(self, line: BatchLine, error: APIError) -> None:
        outcome = batch_results.refused(line.custom_id, error)
        self._set(line, status=FAILED, outcome=outcome, body="")

    def _set(self, line: BatchLine, **values: Any) -> None:
        with self.server.store.session() as session:
            session.execute(update(BatchLine).where(BatchLine.number == line.number).values(values))

    # ---- the end ---------------------------------------------------------------------------------

    def _expire(self, batch: Batch) -> None:
        """What is not made in time is not made, even where a kill comes in between."""
        if batch.expired_at is None and self._lines(batch, OPEN_LINES, 1):
            with self.server.store.session() as session:
                batches.locked(session, batch.id).expired_at = now()
        self._drop(batch, "batch_expired")

    def _drop(self, batch: Batch, code: str) -> None:
        """Stop what is being made of it, and make nothing more."""
        while lines := self._lines(batch, OPEN_LINES, AT_ONCE):
            for line in lines:
                try:
                    self.server.cancel(batch.owner, line.video_id)
                except APIError as error:
                    if error.status == 409:  # it ended just now
                        self._set(line, status=ACCEPTED)
                        self._collect(batch)
                        continue
                outcome = batch_results.unmade(line.custom_id, code)
                self._set(line, status=FAILED, outcome=outcome, body="")


def _checked(body: dict[str, Any]) -> Created:
    """What a line asks for. Raises `APIError` 400."""
    asked = check(Created, body)
    if asked.variations != 1:
        message = "a line of a batch makes one video; variations are lines with seeds of their own"
        raise APIError(400, message, param="variations", code="invalid_value")
    return asked
