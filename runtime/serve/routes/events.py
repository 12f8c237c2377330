"""What happens to a video, as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from .. import videos
from ..databases import trouble_of
from ..errors import APIError
from .common import ERRORS, Id, Owner, Serving

if TYPE_CHECKING:
    from ..live import Live
    from ..server import Server

router = APIRouter()
EVENT = {
    "type": "object",
    "properties": {
        "event": {"enum": ["video", "progress", "preview"]},
        "data": {"type": "string", "description": "JSON"},
    },
    "required": ["event", "data"],
}
LOOK_EVERY, BEAT_EVERY = 0.1, 15.0  # seconds; a beat keeps proxies from closing a silent stream


@router.get(
    "/v1/videos/{video_id}/events",
    response_class=StreamingResponse,
    responses={**ERRORS, 200: {"content": {"text/event-stream": {"schema": EVENT}}}},
)
async def events(
    request: Request, server: Serving, owner: Owner, video_id: Id
) -> StreamingResponse:
    """`video` with the whole object when its status changes, `progress` after each part of it,
    `preview` with an animated WebP while someone listens; the stream ends with the work."""
    await run_in_threadpool(_find, server, owner, video_id)
    stream = _stream(request, server, owner, video_id)
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


async def _stream(request: Request, server: Server, owner: str, id: str) -> AsyncIterator[str]:
    told, live, silent = Told(), None, 0.0
    while True:
        live = server.runs.live.get(id) or live  # what it did last is told after it has ended
        if live is not None:
            live.watch()
        try:
            shown = await run_in_threadpool(_find, server, owner, id)
        except APIError:  # deleted
            return
        except SQLAlchemyError as error:
            if trouble_of(error) is None:
                raise
            if await request.is_disconnected():
                return
            await asyncio.sleep(LOOK_EVERY)
            continue
        lines = told.news(shown, live)
        for line in lines:
            yield line
        if shown["status"] not in videos.PENDING or not server.ready:
            return
        if await request.is_disconnected():
            return
        silent = 0.0 if lines else silent + LOOK_EVERY
        if silent >= BEAT_EVERY:
            yield ": still here\n\n"
            silent = 0.0
        await asyncio.sleep(LOOK_EVERY)


class Told:
    """What one listener has been told."""

    def __init__(self) -> None:
        self.status: str | None = None
        self.events = self.previews = 0

    def news(self, shown: dict[str, Any], live: Live | None) -> list[str]:
        """What it has not been told: parts of the work after the start, and before the end."""
        status, work = [], []
        if shown["status"] != self.status:
            self.status = shown["status"]
            status.append(_event("video", shown))
        if live is not None:
            events = live.events[self.events :]
            self.events += len(events)
            work += [_event("progress", values) for values in events]
            count, preview = live.preview
            if count > self.previews:
                work.append(_event("preview", preview))
                self.previews = count
        return status + work if self.status in videos.PENDING else work + status


def _find(server: Server, owner: str, id: str) -> dict[str, Any]:
    with server.store.session() as session:
        video = videos.find(session, owner, id)
    return server.as_object(video)


def _event(kind: str, values: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(values)}\n\n"
