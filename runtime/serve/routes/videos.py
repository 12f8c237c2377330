"""Videos: made, found, listed, changed, stopped, deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse

from .. import answers as told
from .. import videos
from ..asked import Created, Edited, Extended, Remixed
from ..ordering import create, edit, extend, remix
from ..videos import Video
from .common import (
    ERRORS,
    MAX_PAGE,
    PAGE,
    After,
    Id,
    Order,
    Owner,
    Server,
    Serving,
    answers,
    body_of,
    documented,
    page,
)

router = APIRouter(prefix="/v1/videos", responses=ERRORS)


@router.post("", **answers(told.Video), openapi_extra=documented(Created))
def create_video(
    server: Serving, owner: Owner, body: Annotated[Created, Depends(body_of(Created))]
) -> JSONResponse:
    """Make a video of a prompt, and perhaps of its first frame."""
    return _shown(server, create(server, owner, body))


@router.post("/edits", **answers(told.Video), openapi_extra=documented(Edited))
def edit_video(
    server: Serving, owner: Owner, body: Annotated[Edited, Depends(body_of(Edited))]
) -> JSONResponse:
    """Make a video anew with another prompt; what the noise leaves of it stays."""
    return _shown(server, edit(server, owner, body))


@router.post("/extensions", **answers(told.Video), openapi_extra=documented(Extended))
def extend_video(
    server: Serving, owner: Owner, body: Annotated[Extended, Depends(body_of(Extended))]
) -> JSONResponse:
    """Go on from a video's last frames; the whole is the new video."""
    return _shown(server, extend(server, owner, body))


@router.get("", **answers(told.VideoPage))
def list_videos(
    server: Serving,
    owner: Owner,
    after: After = None,
    limit: Annotated[int, Query(ge=0, le=MAX_PAGE)] = PAGE,
    order: Order = "desc",
) -> dict[str, Any]:
    """A page of the owner's videos, the newest first."""
    with server.store.session() as session:
        found, has_more = videos.page(session, owner, after, limit, order == "desc")
    data = [server.as_object(video) for video in found]
    return page(data, has_more)


@router.get("/{video_id}", **answers(told.Video))
def retrieve_video(server: Serving, owner: Owner, video_id: Id) -> JSONResponse:
    """A video as it stands."""
    with server.store.session() as session:
        video = videos.find(session, owner, video_id)
    return _shown(server, video)


@router.delete("/{video_id}", **answers(told.VideoDeleted))
def delete_video(server: Serving, owner: Owner, video_id: Id) -> dict[str, Any]:
    """Stop it before its next step if it is being made, and remove it."""
    server.delete(owner, video_id)
    return {"id": video_id, "object": "video.deleted", "deleted": True}


@router.post("/{video_id}/remix", **answers(told.Video), openapi_extra=documented(Remixed))
def remix_video(
    server: Serving,
    owner: Owner,
    video_id: Id,
    body: Annotated[Remixed, Depends(body_of(Remixed))],
) -> JSONResponse:
    """Make a video again with another prompt: the same seed, so the same noise, size and length."""
    return _shown(server, remix(server, owner, video_id, body))


@router.post("/{video_id}/cancel", **answers(told.Video))
def cancel_video(server: Serving, owner: Owner, video_id: Id) -> JSONResponse:
    """Stop it before its next step; it stays, failed with the code `cancelled`."""
    return _shown(server, server.cancel(owner, video_id))


def _shown(server: Server, video: Video) -> JSONResponse:
    shown, headers = server.show(video)
    return JSONResponse(shown, headers=headers)
