"""Batches: many requests in a file, made when nothing else waits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import Field

from .. import answers as told
from .. import batches
from ..asked import Fields
from .common import (
    ERRORS,
    JSON_ONLY,
    PAGE,
    After,
    Id,
    Limit,
    Owner,
    Serving,
    answers,
    body_of,
    documented,
    page,
)
from .files import HOUR, ExpiresAfter

router = APIRouter(prefix="/v1/batches", responses=ERRORS)
KEEP_SECONDS = 24 * HOUR
Key = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class Asked(Fields):
    """The body of POST /v1/batches. `keep`, of ours: results do not expire with the batch."""

    input_file_id: str = Field(min_length=1, max_length=64)
    endpoint: Literal["/v1/videos"]
    completion_window: Literal["24h"] = "24h"
    metadata: dict[Key, Value] | None = Field(None, max_length=16)
    output_expires_after: ExpiresAfter | None = None
    keep: bool = False

    @property
    def keep_seconds(self) -> int | None:
        if self.keep:
            return None
        return (
            KEEP_SECONDS if self.output_expires_after is None else self.output_expires_after.seconds
        )


@router.post("", **answers(told.Batch), openapi_extra=documented(Asked, *JSON_ONLY))
def create_batch(
    server: Serving, owner: Owner, body: Annotated[Asked, Depends(body_of(Asked))]
) -> dict[str, Any]:
    """Make the videos that a file asks for, a line each."""
    batch = batches.add(server, owner, body.input_file_id, body.metadata, body.keep_seconds)
    with server.store.session() as session:
        return batches.shown(session, [batch])[0]


@router.get("", **answers(told.BatchPage))
def list_batches(
    server: Serving,
    owner: Owner,
    after: After = None,
    limit: Limit = PAGE,
) -> dict[str, Any]:
    """A page of the owner's batches, the newest first."""
    with server.store.session() as session:
        found, has_more = batches.page(session, owner, after, limit)
        data = batches.shown(session, found)
    return page(data, has_more)


@router.get("/{batch_id}", **answers(told.Batch))
def retrieve_batch(server: Serving, owner: Owner, batch_id: Id) -> dict[str, Any]:
    """A batch as it stands."""
    with server.store.session() as session:
        return batches.shown(session, [batches.find(session, owner, batch_id)])[0]


@router.post("/{batch_id}/cancel", **answers(told.Batch))
def cancel_batch(server: Serving, owner: Owner, batch_id: Id) -> dict[str, Any]:
    """Make nothing more of it; what is done stays, and is in its files."""
    batches.cancel(server, owner, batch_id)
    with server.store.session() as session:
        return batches.shown(session, [batches.find(session, owner, batch_id)])[0]
