"""Videos as the database keeps them, and as clients see them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, Text, func, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from .errors import APIError
from .tables import Base, page_of

QUEUED, IN_PROGRESS, COMPLETED, FAILED = "queued", "in_progress", "completed", "failed"
PENDING = (QUEUED, IN_PROGRESS)
MAX_ANCESTORS = 64


class Video(Base):
    """One that was accepted. `number` counts them in the order of their coming.

    `order` is what to make (`orders.Order`), `report` what was done.
    """

    __tablename__ = "videos"
    __table_args__ = (
        Index("videos_by_owner", "owner", "number"),
        Index("videos_by_status", "status", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16), default=QUEUED)
    model: Mapped[str] = mapped_column(String(200))
    prompt: Mapped[str] = mapped_column(Text)
    seconds: Mapped[str] = mapped_column(String(32))
    size: Mapped[str] = mapped_column(String(32))
    order: Mapped[dict[str, Any]] = mapped_column(JSON)
    expected: Mapped[float] = mapped_column(Float, default=0.0)  # seconds of work, as planned
    created_at: Mapped[int] = mapped_column(BigInteger)
    completed_at: Mapped[int | None] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    remixed_from: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)  # on the disk, once it is completed
    attempts: Mapped[int] = mapped_column(Integer, default=0, server_default="0")


def as_object(video: Video, progress: int = 0) -> dict[str, Any]:
    """What clients see; `progress` is that of one under way. `kinema` holds what they did not ask
    for by name: seed, steps, and how the model's own size and length were made to fit."""
    made = {COMPLETED: 100, IN_PROGRESS: progress}.get(video.status, 0)
    extra = {"seed": video.order["seed"], **(video.report or {})}
    if variations := video.order.get("variations"):
        extra["variations"] = variations
    if characters := video.order.get("characters"):
        extra["characters"] = [one["id"] for one in characters]
    return {
        "id": video.id,
        "object": "video",
        "model": video.model,
        "status": video.status,
        "progress": made,
        "created_at": video.created_at,
        "completed_at": video.completed_at,
        "expires_at": video.expires_at,
        "prompt": video.prompt,
        "size": video.size,
        "seconds": video.seconds,
        "remixed_from_video_id": video.remixed_from,
        "error": video.error,
        "kinema": extra,
    }


def find(session: Session, owner: str, id: str) -> Video:
    """One of the owner's. Raises `APIError` 404 for another's as for none."""
    video = session.scalar(select(Video).where(Video.id == id, Video.owner == owner))
    if video is None:
        raise APIError(404, f"there is no video {id[:80]!r}", param="video_id", code="not_found")
    return video


def ancestors(session: Session, owner: str, video: Video) -> list[Video]:
    """The owner's that one was made from, nearest first, as far as they are there."""
    found: list[Video] = []
    while video.remixed_from is not None and len(found) < MAX_ANCESTORS:
        query = select(Video).where(Video.id == video.remixed_from, Video.owner == owner)
        if (source := session.scalar(query)) is None:
            break
        video = source
        found.append(video)
    return found


def locked(session: Session, id: str) -> Video | None:
    """One that nobody else changes before the transaction ends.

    A write takes the lock, since SQLite has no SELECT ... FOR UPDATE.
    """
    nothing = update(Video).where(Video.id == id).values(status=Video.status)
    session.execute(nothing, execution_options={"synchronize_session": False})
    return session.scalar(select(Video).where(Video.id == id))


def page(
    session: Session, owner: str, after: str | None, limit: int, newest_first: bool
) -> tuple[list[Video], bool]:
    """At most `limit` of the owner's, those that follow `after`, and whether there are more."""
    last = None if after is None else find(session, owner, after).number
    own = select(Video).where(Video.owner == owner)
    return page_of(session, own, Video.number, last, limit, newest_first)


def waiting(session: Session, owner: str | None = None) -> int:
    """How many are queued."""
    query = select(func.count()).where(Video.status == QUEUED)
    return session.scalar(query if owner is None else query.where(Video.owner == owner)) or 0


def work_ahead(session: Session, number: int | None = None) -> float:
    """Seconds of work, as planned, that is not done; of what came before a number."""
    query = select(func.sum(Video.expected)).where(Video.status.in_(PENDING))
    return session.scalar(query if number is None else query.where(Video.number < number)) or 0.0


def bytes_kept(session: Session) -> int:
    """What finished videos take."""
    return int(session.scalar(select(func.sum(Video.bytes))) or 0)
