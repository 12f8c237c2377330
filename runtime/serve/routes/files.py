"""Files: kept, listed, read, deleted."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from fastapi.responses import FileResponse
from pydantic import Field, field_validator

from .. import answers as told
from .. import files
from ..asked import Fields
from ..body import is_file
from ..errors import APIError
from ..tables import now
from .common import (
    ERRORS,
    After,
    Id,
    Order,
    Owner,
    Serving,
    answers,
    answers_files,
    body_of,
    documented,
    page,
)

router = APIRouter(prefix="/v1/files", responses=ERRORS)
HOUR = 3600
MAX_PAGE = 10_000
BATCH_SECONDS = 30 * 24 * HOUR  # that files of batches stay, unless they are asked to stay longer


class ExpiresAfter(Fields):
    """How long a file stays."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=HOUR, le=30 * 24 * HOUR)


class Uploaded(Fields):
    """The body of POST /v1/files."""

    file: Any = Field(json_schema_extra={"type": "string", "format": "binary"})
    purpose: files.Purpose
    expires_after: ExpiresAfter | None = None

    @field_validator("file", mode="before")
    @classmethod
    def _file(cls, value: Any) -> Any:
        if not is_file(value):
            raise ValueError("a file is expected, in a form")
        if not value.size:
            raise ValueError("the file is empty")
        return value

    @field_validator("expires_after", mode="before")
    @classmethod
    def _expires_after(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            raise ValueError("an object with anchor and seconds is expected") from None


@router.post("", **answers(told.File), openapi_extra=documented(Uploaded, "multipart/form-data"))
def create_file(
    server: Serving, owner: Owner, body: Annotated[Uploaded, Depends(body_of(Uploaded))]
) -> dict[str, Any]:
    """Keep a file."""
    server.check_room(body.file.size)
    seconds = BATCH_SECONDS if body.purpose == "batch" else None
    if body.expires_after is not None:
        seconds = body.expires_after.seconds
    expires_at = None if seconds is None else now() + seconds
    name = body.file.filename or ""
    file = files.add(server, owner, body.file, name, body.purpose, expires_at)
    return files.as_object(file)


@router.get("", **answers(told.FilePage))
def list_files(
    server: Serving,
    owner: Owner,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
    order: Order = "desc",
    purpose: Annotated[str | None, Query(pattern="^[a-z_-]+$", max_length=32)] = None,
) -> dict[str, Any]:
    """A page of the owner's files, the newest first."""
    with server.store.session() as session:
        found, has_more = files.page(session, owner, after, limit, order == "desc", purpose)
    data = [files.as_object(file) for file in found]
    return page(data, has_more)


@router.get("/{file_id}", **answers(told.File))
def retrieve_file(server: Serving, owner: Owner, file_id: Id) -> dict[str, Any]:
    """What is known of a file."""
    with server.store.session() as session:
        return files.as_object(files.find(session, owner, file_id))


@router.delete("/{file_id}", **answers(told.FileDeleted))
def delete_file(server: Serving, owner: Owner, file_id: Id) -> dict[str, Any]:
    """Remove a file; videos that were made of it stay."""
    files.delete(server, owner, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get(
    "/{file_id}/content",
    response_class=FileResponse,
    **answers_files("application/octet-stream"),
)
def file_content(server: Serving, owner: Owner, file_id: Id) -> FileResponse:
    """A file as it was given; parts of it by Range."""
    with server.store.session() as session:
        file = files.find(session, owner, file_id)
    path = files.path(server, file.id)
    if not path.is_file():
        raise APIError(404, f"the content of file {file.id} is gone", code="not_found")
    # A browser must not take what a stranger gave for a page of this server.
    headers = {"X-Content-Type-Options": "nosniff"}
    return FileResponse(
        path, media_type="application/octet-stream", filename=file.filename, headers=headers
    )
