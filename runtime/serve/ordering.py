"""From what a client asked for to an accepted video: its files stored, its order written."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import videos
from .asked import Created, Edited, Extended, Made, Remixed, size_of
from .errors import APIError
from .making import VIDEO
from .orders import REFERENCE, SOURCE, Order
from .server import Server, random_seed
from .sources import Source
from .tables import new_id
from .uploads import store_clip, store_picture
from .videos import Video

GIVEN = "given.part"  # an upload, as it came
LONGEST = 120  # seconds of an extension and what it goes on from


def create(server: Server, owner: str, asked: Created) -> Video:
    """Of a prompt, and perhaps of a first frame."""
    server.check_room()
    id = new_id("video")
    with server.new_folder(id) as folder:
        if asked.input_reference is not None:
            _store_reference(server, owner, asked.input_reference, folder)
        width, height = size_of(asked.size)
        order = Order(
            width=width,
            height=height,
            seconds=float(asked.seconds),
            picture=asked.input_reference is not None,
            **_common(asked),
        )
        return server.accept(owner, id, asked.model, order, seconds=asked.seconds, source=None)


def remix(server: Server, owner: str, source_id: str, asked: Remixed) -> Video:
    """As another was made, with another prompt."""
    server.check_room()
    source = _completed(server, owner, source_id)
    id, order = new_id("video"), replace(Order(**source.order), prompt=asked.prompt)
    with server.new_folder(id) as folder:
        for name in (REFERENCE, SOURCE):
            if (file := server.folder(source.id) / name).exists():
                _link(file, folder / name)
        return server.accept(owner, id, source.model, order, seconds=source.seconds, source=source)


def edit(server: Server, owner: str, asked: Edited) -> Video:
    """Of a video, with another prompt."""
    server.check_room()
    id = new_id("video")
    with server.new_folder(id) as folder:
        source = _store_source(server, owner, asked.video, folder)
        width, height, seconds = _measure(folder / SOURCE, source)
        common = _common(asked)
        if source is not None and asked.seed is None:
            common["seed"] = source.order["seed"]
        order = Order(
            width=width,
            height=height,
            seconds=seconds,
            kind="edit",
            strength=asked.strength,
            **common,
        )
        model = _model(asked, source)
        return server.accept(owner, id, model, order, seconds=f"{seconds:g}", source=source)


def extend(server: Server, owner: str, asked: Extended) -> Video:
    """Of a video, and what comes after it."""
    server.check_room()
    id = new_id("video")
    with server.new_folder(id) as folder:
        source = _store_source(server, owner, asked.video, folder)
        width, height, before = _measure(folder / SOURCE, source)
        stitched = before + float(asked.seconds)
        if stitched > LONGEST:
            message = f"the whole would last {stitched:g} seconds; at most {LONGEST} work"
            raise APIError(400, message, param="seconds", code="invalid_value")
        order = Order(
            width=width,
            height=height,
            seconds=float(asked.seconds),
            kind="extension",
            **_common(asked),
        )
        model = _model(asked, source)
        return server.accept(owner, id, model, order, seconds=f"{stitched:g}", source=source)


def _common(asked: Made) -> dict[str, Any]:
    return {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": random_seed() if asked.seed is None else asked.seed,
        "steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
        "fps": asked.fps,
    }


def _model(asked: Made, source: Video | None) -> str:
    named = "model" in asked.model_fields_set or source is None
    return asked.model if named else source.model


def _measure(path: Path, video: Video | None) -> tuple[int, int, float]:
    """Width, height and seconds: of a video of ours as they were asked for."""
    if video is not None:
        return *size_of(video.size), float(video.seconds)
    source = Source(path)
    return source.width // 2 * 2, source.height // 2 * 2, source.seconds


def _store_reference(server: Server, owner: str, given: Any, folder: Path) -> None:
    file = folder / GIVEN
    if isinstance(given, dict):
        if "file_id" in given:
            message = f"there is no file {given['file_id'][:80]!r}"
            raise APIError(400, message, param="input_reference", code="file_not_found")
        server.fetcher.fetch(given["image_url"], file)
    else:
        _write(given, file)
    store_picture(file, folder / REFERENCE, server.settings.limits)
    file.unlink()


def _store_source(server: Server, owner: str, given: Any, folder: Path) -> Video | None:
    """The video that another is made of, as SOURCE; its row where it is one of the owner's."""
    if isinstance(given, dict):
        source = _completed(server, owner, given["id"])
        _link(server.folder(source.id) / VIDEO, folder / SOURCE)
        return source
    file = folder / GIVEN
    _write(given, file)
    store_clip(file, folder / SOURCE, server.settings.limits)
    file.unlink()
    return None


def _completed(server: Server, owner: str, id: str) -> Video:
    with server.store.session() as session:
        source = videos.find(session, owner, id)
    if source.status != videos.COMPLETED:
        message = f"video {id} is {source.status}; one that is completed can be worked on"
        raise APIError(400, message, param="video", code="not_ready")
    return source


def _write(upload: Any, file: Path) -> None:
    with file.open("wb") as out:
        shutil.copyfileobj(upload.file, out)


def _link(source: Path, file: Path) -> None:
    """The same file under another name, so that it stays when the other goes."""
    try:
        os.link(source, file)
    except FileNotFoundError:
        raise APIError(404, "the files of the video are gone", code="not_found") from None
    except OSError:  # a file system without links
        shutil.copyfile(source, file)
