"""Batches: many requests for videos in one file, made when nothing else waits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    func,
    select,
    update,
)
from sqlalchemy.orm import Mapped, Session, mapped_column

from . import files
from .errors import APIError
from .tables import Base, new_id, now, page_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .server import Server

ENDPOINT, WINDOW = "/v1/videos", "24h"
WINDOW_SECONDS = 24 * 3600
VALIDATING, IN_PROGRESS, CANCELLING = "validating", "in_progress", "cancelling"
COMPLETED, FAILED = "completed", "failed"
OPEN = (VALIDATING, IN_PROGRESS, "finalizing", CANCELLING)
WAITING, ACCEPTED = "waiting", "accepted"  # a line's, before it is completed or failed
MAX_CUSTOM_ID = 512
AT_ONCE = 200  # rows that are read or written together


class Batch(Base):
    """One that was accepted. `number` counts them in the order of their coming.

    `keep_seconds` is how long results stay after the end; None leaves them to the server.
    `counts` are those of an ended batch, whose lines are gone.
    """

    __tablename__ = "batches"
    __table_args__ = (
        Index("batches_by_owner", "owner", "number"),
        Index("batches_by_status", "status", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16), default=VALIDATING)
    input_file_id: Mapped[str] = mapped_column(String(64))
    model: Mapped[str | None] = mapped_column(String(200))
    told: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON)
    keep_seconds: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int] = mapped_column(BigInteger)
    in_progress_at: Mapped[int | None] = mapped_column(BigInteger)
    finalizing_at: Mapped[int | None] = mapped_column(BigInteger)
    completed_at: Mapped[int | None] = mapped_column(BigInteger)
    failed_at: Mapped[int | None] = mapped_column(BigInteger)
    expired_at: Mapped[int | None] = mapped_column(BigInteger)
    cancelling_at: Mapped[int | None] = mapped_column(BigInteger)
    cancelled_at: Mapped[int | None] = mapped_column(BigInteger)
    counts: Mapped[dict[str, int] | None] = mapped_column(JSON)
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    output_file_id: Mapped[str | None] = mapped_column(String(64))
    error_file_id: Mapped[str | None] = mapped_column(String(64))

    def enter(self, status: str) -> None:
        """From now on it is in this state."""
        self.status = status
        setattr(self, f"{status}_at", now())


class BatchLine(Base):
    """A request of a batch. Its video has its id from the start, so that none is made twice.

    `outcome` is its line of the results, as JSON.
    """

    __tablename__ = "batch_lines"
    __table_args__ = (
        Index("batch_lines_by_line", "batch_id", "line", unique=True),
        Index("batch_lines_by_status", "batch_id", "status"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("batches.id", ondelete="CASCADE"))
    line: Mapped[int] = mapped_column(Integer)
    custom_id: Mapped[str] = mapped_column(String(MAX_CUSTOM_ID))
    status: Mapped[str] = mapped_column(String(16))
    video_id: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str | None] = mapped_column(Text)


def as_object(batch: Batch, counts: dict[str, int]) -> dict[str, Any]:
    """What clients see."""
    names = ("created", "in_progress", "expires", "finalizing", "completed", "failed", "expired")
    names += ("cancelling", "cancelled")
    errors = None if batch.errors is None else {"object": "list", "data": batch.errors}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "model": batch.model,
        "errors": errors,
        "input_file_id": batch.input_file_id,
        "completion_window": WINDOW,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        **{f"{name}_at": getattr(batch, f"{name}_at") for name in names},
        "request_counts": counts,
        "metadata": batch.told,
    }


def shown(session: Session, found: Iterable[Batch]) -> list[dict[str, Any]]:
    """Batches as clients see them."""
    found = list(found)
    under_way = [batch.id for batch in found if batch.counts is None]
    counts = {id: {"total": 0, COMPLETED: 0, FAILED: 0} for id in under_way}
    query = select(BatchLine.batch_id, BatchLine.status, func.count())
    query = query.where(BatchLine.batch_id.in_(under_way))
    for id, status, count in session.execute(query.group_by(BatchLine.batch_id, BatchLine.status)):
        counts[id]["total"] += count
        if status in counts[id]:
            counts[id][status] = count
    return [as_object(batch, batch.counts or counts[batch.id]) for batch in found]


def find(session: Session, owner: str, id: str) -> Batch:
    """One of the owner's. Raises `APIError` 404 for another's as for none."""
    batch = session.scalar(select(Batch).where(Batch.id == id, Batch.owner == owner))
    if batch is None:
        raise APIError(404, f"there is no batch {id[:80]!r}", param="batch_id", code="not_found")
    return batch


def locked(session: Session, id: str) -> Batch:
    """One that nobody else changes before the transaction ends."""
    nothing = update(Batch).where(Batch.id == id).values(status=Batch.status)
    session.execute(nothing, execution_options={"synchronize_session": False})
    return session.scalars(select(Batch).where(Batch.id == id)).one()


def page(session: Session, owner: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
    """At most `limit` of the owner's, newest first, and whether there are more."""
    last = None if after is None else find(session, owner, after).number
    own = select(Batch).where(Batch.owner == owner)
    return page_of(session, own, Batch.number, last, limit)


def add(
    server: Server,
    owner: str,
    file_id: str,
    metadata: dict[str, str] | None,
    keep_seconds: int | None,
) -> Batch:
    """Accept a batch; its lines are looked at from then on."""
    with server.store.session() as session:
        try:
            file = files.find(session, owner, file_id)
        except APIError as error:
            raise APIError(
                400, error.message, param="input_file_id", code="file_not_found"
            ) from None
        if file.purpose != "batch":
            message = f"file {file.id} has the purpose {file.purpose!r}; 'batch' is expected"
            raise APIError(400, message, param="input_file_id", code="invalid_value")
        batch = Batch(
            id=new_id("batch"),
            owner=owner,
            status=VALIDATING,
            input_file_id=file.id,
            told=metadata,
            keep_seconds=keep_seconds,
            created_at=now(),
            expires_at=now() + WINDOW_SECONDS,
        )
        session.add(batch)
    server.batching.wake()
    return batch


def cancel(server: Server, owner: str, id: str) -> None:
    """Make nothing more of it; what is done stays. Raises `APIError` 409 for one that has ended."""
    with server.store.session() as session:
        locked(session, find(session, owner, id).id)
        batch = find(session, owner, id)
        if batch.status not in OPEN:
            message = f"batch {id} is {batch.status}; only one that is not done can be cancelled"
            raise APIError(409, message, code="already_ended")
        if batch.status in (VALIDATING, IN_PROGRESS):
            batch.enter(CANCELLING)
    server.batching.wake()
