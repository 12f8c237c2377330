"""The files of a finished video."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import FileResponse

from .. import pictures, videos
from ..errors import APIError
from ..making import VIDEO
from .common import ERRORS, Id, Owner, Serving, answers_files

router = APIRouter(responses=ERRORS)
FILES = {
    "video": (VIDEO, "video/mp4"),
    "thumbnail": (pictures.THUMBNAIL, "image/webp"),
    "spritesheet": (pictures.SHEET, "image/jpeg"),
}


@router.get(
    "/v1/videos/{video_id}/content",
    response_class=FileResponse,
    **answers_files(*(kind for _, kind in FILES.values())),
)
def content(
    server: Serving,
    owner: Owner,
    video_id: Id,
    variant: Literal["video", "thumbnail", "spritesheet"] = "video",
) -> FileResponse:
    """The video, its thumbnail or its sheet of frames; parts of it by Range."""
    with server.store.session() as session:
        video = videos.find(session, owner, video_id)
    if video.status != videos.COMPLETED:
        message = f"video {video_id} is {video.status}; it has content once it is completed"
        raise APIError(409 if video.status != videos.FAILED else 400, message, code="not_ready")
    name, kind = FILES[variant]
    path = server.folder(video_id) / name
    if not path.is_file():
        raise APIError(404, f"the {variant} of video {video_id} is gone", code="not_found")
    return FileResponse(path, media_type=kind, filename=f"{video_id}{path.suffix}")
