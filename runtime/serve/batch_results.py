"""What came of a batch: a line of JSON for each of its requests, and the files they end in."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session
from starlette.datastructures import UploadFile

from . import batches, files, videos
from .batches import AT_ONCE, COMPLETED, FAILED, Batch, BatchLine
from .errors import APIError
from .files import File
from .tables import new_id, now
from .videos import Video

if TYPE_CHECKING:
    from .server import Server

FILES = {COMPLETED: "output", FAILED: "error"}
WHY = {
    "batch_cancelled": "the batch was cancelled before this was made",
    "batch_expired": "the batch expired before this was made",
    "deleted": "the video was deleted",
}


def made(custom_id: str, video: Video | None) -> str:
    """Of a video that has ended, or was deleted."""
    if video is None:
        return unmade(custom_id, "deleted")
    return _outcome(custom_id, 200, videos.as_object(video), video.error)


def refused(custom_id: str, error: APIError) -> str:
    """Of a request that could not be accepted."""
    return _outcome(custom_id, error.status, error.body())


def unmade(custom_id: str, code: str) -> str:
    """Of a request that nothing became of."""
    return _outcome(custom_id, None, {}, {"code": code, "message": WHY[code]})


def _outcome(custom_id: str, status: int | None, body: dict[str, Any], error: Any = None) -> str:
    response = {"status_code": status, "request_id": new_id("req"), "body": body}
    return json.dumps(
        {
            "id": new_id("batch_req"),
            "custom_id": custom_id,
            "response": None if status is None else response,
            "error": error,
        }
    )


# ---- files ---------------------------------------------------------------------------------------


def finish(server: Server, batch: Batch) -> None:
    """Write a batch's files; they and the batch's end are seen together, or not at all."""
    with server.store.session() as session:
        kept = batches.locked(session, batch.id)
        if kept.status == batches.IN_PROGRESS:
            kept.enter("finalizing")
    keep = kept.keep_seconds
    expires_at = None if keep is None else now() + keep
    results = {state: _write(server, batch, state, expires_at) for state in (COMPLETED, FAILED)}
    try:
        with server.store.session() as session:
            kept = batches.locked(session, batch.id)
            session.add_all(file for file in results.values() if file is not None)
            _end(server, session, kept, results, expires_at)
    except BaseException:
        for file in results.values():
            if file is not None:
                files.path(server, file.id).unlink(missing_ok=True)
        raise
    server.webhooks.wake()


def _end(
    server: Server,
    session: Session,
    kept: Batch,
    results: dict[str, File | None],
    expires_at: int | None,
) -> None:
    kept.counts = batches.shown(session, [kept])[0]["request_counts"]
    kept.output_file_id, kept.error_file_id = (
        None if file is None else file.id for file in results.values()
    )
    own = BatchLine.batch_id == kept.id
    if expires_at is not None:
        theirs = Video.id.in_(select(BatchLine.video_id).where(own))
        longer = or_(Video.expires_at.is_(None), Video.expires_at > expires_at)
        session.execute(
            update(Video).where(theirs, longer).values(expires_at=expires_at),
            execution_options={"synchronize_session": False},
        )
    session.execute(delete(BatchLine).where(own))
    kept.enter("expired" if kept.expired_at else "cancelled" if kept.cancelling_at else COMPLETED)
    server.webhooks.ended(session, kept.owner, f"batch.{kept.status}", kept.id)


def _write(server: Server, batch: Batch, state: str, expires_at: int | None) -> File | None:
    """The results of lines that ended so, in a file that nobody sees yet; None without any."""
    name = f"{batch.id}_{FILES[state]}.jsonl"
    with tempfile.TemporaryFile(dir=server.settings.data) as out:
        for outcome in _outcomes(server, batch, state):
            out.write(f"{_expiring(outcome, expires_at)}\n".encode())
        if out.tell() == 0:
            return None
        return files.stored(server, batch.owner, UploadFile(out), name, "batch_output", expires_at)


def _outcomes(server: Server, batch: Batch, state: str) -> Iterator[str]:
    query = select(BatchLine.line, BatchLine.outcome).where(BatchLine.batch_id == batch.id)
    query = query.where(BatchLine.status == state).order_by(BatchLine.line).limit(AT_ONCE)
    last = 0
    while True:
        with server.store.session() as session:
            found = session.execute(query.where(BatchLine.line > last)).all()
        if not found:
            return
        for _, outcome in found:
            assert outcome is not None  # of a line that has ended
            yield outcome
        last = found[-1].line


def _expiring(outcome: str, at: int | None) -> str:
    """With the time that the batch gives its video."""
    read = json.loads(outcome)
    body = (read["response"] or {}).get("body", {})
    if at is None or body.get("object") != "video":
        return outcome
    body["expires_at"] = min(at, body["expires_at"] or at)
    return json.dumps(read)
