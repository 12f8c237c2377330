"""Files that clients keep here: batches and their results, pictures and clips to make videos of."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import BigInteger, Index, Integer, String, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..files import whole_or_nothing
from .errors import APIError
from .tables import Base, new_id, now, page_of

if TYPE_CHECKING:
    from starlette.datastructures import UploadFile

    from .server import Server

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]  # of uploads
MAX_NAME = 200
UNFIT = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # for a name


class File(Base):
    """One that was stored whole. `number` counts them in the order of their coming."""

    __tablename__ = "files"
    __table_args__ = (
        Index("files_by_owner", "owner", "number"),
        Index("files_by_expiry", "expires_at"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    filename: Mapped[str] = mapped_column(String(MAX_NAME))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16), default="processed")


def as_object(file: File) -> dict[str, Any]:
    """What clients see."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": None,
    }


def folder(server: Server) -> Path:
    """Where the contents of all files are."""
    return server.settings.data / "files"


def path(server: Server, id: str) -> Path:
    """Where a file's content is."""
    return folder(server) / id


def find(session: Session, owner: str, id: str) -> File:
    """One of the owner's. Raises `APIError` 404 for another's as for none."""
    file = session.scalar(select(File).where(File.id == id, File.owner == owner))
    if file is None:
        raise APIError(404, f"there is no file {id[:80]!r}", param="file_id", code="not_found")
    return file


def page(
    session: Session,
    owner: str,
    after: str | None,
    limit: int,
    newest_first: bool,
    purpose: str | None = None,
) -> tuple[list[File], bool]:
    """At most `limit` of the owner's, those that follow `after`, and whether there are more."""
    last = None if after is None else find(session, owner, after).number
    own = select(File).where(File.owner == owner)
    if purpose is not None:
        own = own.where(File.purpose == purpose)
    return page_of(session, own, File.number, last, limit, newest_first)


def add(
    server: Server,
    owner: str,
    source: Path | UploadFile,
    filename: str,
    purpose: str,
    expires_at: int | None = None,
) -> File:
    """Keep a copy of a file or an upload. It is on the disk, whole, before anybody sees it.

    Raises `KinemaError` for a disk that is full.
    """
    file = stored(server, owner, source, filename, purpose, expires_at)
    try:
        with server.store.session() as session:
            session.add(file)
    except BaseException:
        path(server, file.id).unlink(missing_ok=True)
        raise
    return file


def stored(
    server: Server,
    owner: str,
    source: Path | UploadFile,
    filename: str,
    purpose: str,
    expires_at: int | None = None,
) -> File:
    """As `add`, but the row is not in the database yet: without it, `sweep` removes the copy."""
    id = new_id("file").replace("_", "-")
    place = path(server, id)
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_or_nothing(place) as unfinished:
        _copy(source, unfinished)
    return File(
        id=id,
        owner=owner,
        filename=UNFIT.sub("", filename)[-MAX_NAME:] or id,
        purpose=purpose,
        bytes=place.stat().st_size,
        created_at=now(),
        expires_at=expires_at,
        status="processed",
    )


def delete(server: Server, owner: str, id: str) -> None:
    """Remove one of the owner's; who is reading it may finish."""
    with server.store.session() as session:
        session.delete(find(session, owner, id))
    path(server, id).unlink(missing_ok=True)


def bytes_kept(session: Session) -> int:
    """What all files take."""
    return int(session.scalar(select(func.sum(File.bytes))) or 0)


def sweep(server: Server, left_alone: float) -> None:
    """Remove those that have expired, and contents that have had no row for so many seconds."""
    with server.store.session() as session:
        expired = session.scalars(select(File).where(File.expires_at <= now()))
        gone = [(file.owner, file.id) for file in expired]
    for owner, id in gone:
        with suppress(APIError):  # deleted by its owner meanwhile
            delete(server, owner, id)
    if not folder(server).is_dir():
        return
    with server.store.session() as session:
        known = set(session.scalars(select(File.id)))
    for content in folder(server).iterdir():
        with suppress(FileNotFoundError):  # likewise
            if content.name not in known and content.stat().st_mtime < now() - left_alone:
                content.unlink()


def _copy(source: Path | UploadFile, into: Path) -> None:
    with into.open("wb") as out:
        if isinstance(source, Path):
            with source.open("rb") as file:
                shutil.copyfileobj(file, out)
        else:
            source.file.seek(0)
            shutil.copyfileobj(source.file, out)
        out.flush()
        os.fsync(out.fileno())
