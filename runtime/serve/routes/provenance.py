"""Where a file comes from: any that is sent in, and the videos made here."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field, field_validator

from ...errors import UsageError
from ...files import beside
from ...provenance.verify import INVALID, MARKED, NOTHING, verify
from .. import answers as told
from .. import files, videos
from ..asked import Fields
from ..body import is_file
from ..errors import APIError
from ..making import VIDEO
from ..tables import now
from .common import ERRORS, Id, Owner, Server, Serving, answers, body_of, documented

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from ...provenance.verify import Verification
    from ..videos import Video

router = APIRouter(responses=ERRORS)
SIGNATURES = (  # of what is looked into: where, and what
    (4, b"ftyp"),  # MP4, MOV
    (0, b"\x1aE\xdf\xa3"),  # WebM, Matroska
    (8, b"WEBP"),
    (0, b"\x89PNG"),
    (0, b"\xff\xd8\xff"),  # JPEG
    (0, b"GIF8"),
    (8, b"WAVE"),
    (0, b"fLaC"),
    (0, b"OggS"),
    (0, b"ID3"),  # MP3
)
AT_ONCE = 2
_looking = threading.BoundedSemaphore(AT_ONCE)  # a long clip keeps a core busy for seconds


class Checked(Fields):
    """The body of POST /v1/content_provenance_checks."""

    file: Any = Field(json_schema_extra={"type": "string", "format": "binary"})

    @field_validator("file", mode="before")
    @classmethod
    def _file(cls, value: Any) -> Any:
        if not is_file(value):
            raise ValueError("a file is expected, in a form")
        head = value.file.read(16)
        value.file.seek(0)
        if not any(head[at:].startswith(what) for at, what in SIGNATURES):
            known = "MP4, MOV, WebM, WebP, PNG, JPEG, GIF, WAV, FLAC, Ogg, MP3"
            raise ValueError(f"what the file is cannot be told; {known} are looked into")
        return value


@router.post(
    "/v1/content_provenance_checks",
    **answers(told.Check),
    openapi_extra=documented(Checked, "multipart/form-data"),
)
def create_check(
    server: Serving, owner: Owner, body: Annotated[Checked, Depends(body_of(Checked))]
) -> dict[str, Any]:
    """What a video, picture or sound says of where it comes from, and whether that holds."""
    with _one_of_few(), _written(server, body.file) as path:
        found = _verified(server, path)
    return {
        "object": "content_provenance_check",
        "created_at": now(),
        "results": [_manifest(found), _marks(found)],
    }


@router.get("/v1/videos/{video_id}/provenance", **answers(told.Provenance))
def video_provenance(server: Serving, owner: Owner, video_id: Id) -> dict[str, Any]:
    """All that is known of a finished video: its file's manifest and marks, read back from it, and
    the videos that it was made from."""
    with server.store.session() as session:
        video = videos.find(session, owner, video_id)
        made_from = _made_from(session, owner, video)
    path = server.folder(video_id) / VIDEO
    if video.status != videos.COMPLETED:
        message = (
            f"video {video_id} is {video.status}; it says where it comes from once it is completed"
        )
        raise APIError(409 if video.status != videos.FAILED else 400, message, code="not_ready")
    if not path.is_file():
        raise APIError(404, f"the file of video {video_id} is gone", code="not_found")
    with _one_of_few():
        found = _verified(server, path).as_dict()
    del found["path"]
    return {
        "id": video_id,
        "object": "video.provenance",
        "kind": video.order["kind"],
        "made_from": made_from,
        **found,
    }


@contextmanager
def _one_of_few() -> Iterator[None]:
    if not _looking.acquire(blocking=False):
        message = f"{AT_ONCE} files are being looked into; try again"
        raise APIError(429, message, code="busy", headers={"Retry-After": "2"})
    try:
        yield
    finally:
        _looking.release()


@contextmanager
def _written(server: Server, upload: Any) -> Iterator[Path]:
    """An upload as a file, for as long as it is looked into."""
    files.folder(server).mkdir(parents=True, exist_ok=True)
    path = beside(files.folder(server) / "check")
    try:
        with path.open("wb") as out:
            shutil.copyfileobj(upload.file, out)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _verified(server: Server, path: Path) -> Verification:
    try:
        return verify(path, mark_key=server.settings.provenance.mark_key)
    except UsageError:  # its message tells where files are kept
        raise APIError(400, "the file cannot be read", param="file", code="invalid_file") from None


def _manifest(found: Verification) -> dict[str, Any]:
    """As the client knows it. What an invalid manifest says is not repeated: it proves nothing."""
    present = found.state not in (NOTHING, MARKED)
    holds = present and found.state != INVALID
    made_by = found.generation.get("model") if holds else None
    return {
        "type": "c2pa",
        "outcome": "detected" if holds else "not_detected",
        "validation_state": found.state if present else "not_present",
        "issuer": found.signed_by if holds else None,
        "model": made_by.get("name") if isinstance(made_by, dict) else made_by,
        "generated_at": found.when if holds else None,
        "software": found.software if holds else None,
        "problems": list(found.problems),
        "lineage": list(found.lineage) if holds else [],
    }


def _marks(found: Verification) -> dict[str, Any]:
    """Our own marks in picture and sound, which outlast the manifest."""
    marked = found.picture_mark or found.sound_mark
    return {
        "type": "kinema",
        "outcome": "detected" if marked else "not_detected",
        "model": None,
        "generated_at": None,
        "picture_mark": found.picture_mark,
        "sound_mark": found.sound_mark,
    }


def _made_from(session: Session, owner: str, video: Video) -> list[dict[str, Any]]:
    """The videos that one was made from, nearest first, as far as they are there."""
    chain = [video, *videos.ancestors(session, owner, video)]
    told = [
        {"id": one.id, "kind": one.order["kind"], "model": one.model, "created_at": one.created_at}
        for one in chain[1:]
    ]
    lost = chain[-1].remixed_from
    return told if lost is None else [*told, {"id": lost}]
