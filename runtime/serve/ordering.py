"""From what a client asked for to an accepted video: its files stored, its order written."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from . import characters, files, videos
from .asked import Created, Edited, Extended, Made, Remixed, Shown, size_of
from .characters import Character
from .errors import APIError
from .making import VIDEO
from .orders import CHARACTERS, PARENT, REFERENCE, SOURCE, Order
from .sources import EDGES, SOURCE_EDGES, Source
from .tables import new_id
from .uploads import store_clip, store_picture
from .videos import Video

if TYPE_CHECKING:
    from .server import Server

GIVEN = "given.part"  # an upload, as it came
LONGEST = 120  # seconds of an extension and what it goes on from
MAX_DRAWN = 2**31  # above the seeds of requests that name none


def create(server: Server, owner: str, asked: Created, id: str | None = None) -> Video:
    """Of a prompt, and perhaps of a first frame. `id`: one that was given to it before."""
    server.check_room()
    id = id or new_id("video")
    with server.new_folder(id) as folder:
        if asked.input_reference is not None:
            _store_reference(server, owner, asked.input_reference, folder)
        cast = characters.cast(server, owner, asked)
        characters.store_looks(server, cast, folder)
        width, height = size_of(asked.size)
        order = Order(
            width=width,
            height=height,
            seconds=float(asked.seconds),
            picture=asked.input_reference is not None,
            storyboard=_storyboard(asked),
            transition=asked.transition,
            characters=[{"id": one.id, "name": one.name} for one in cast],
            **_common(asked),
        )
        model, count = asked.model, asked.variations
        return _accept(server, owner, id, model, order, count, asked.seconds, None)


def remix(server: Server, owner: str, source_id: str, asked: Remixed) -> Video:
    """As another was made, with another prompt."""
    server.check_room()
    source = _completed(server, owner, source_id)
    id, order = new_id("video"), _reworded(Order(**source.order), asked.prompt)
    with server.new_folder(id) as folder:
        given = server.folder(source.id)
        for file in (given / REFERENCE, given / SOURCE, *given.glob(CHARACTERS)):
            if file.exists():
                _link(file, folder / file.name)
        _link(server.folder(source.id) / VIDEO, folder / PARENT)
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
        model, count = _model(asked, source), asked.variations
        return _accept(server, owner, id, model, order, count, f"{seconds:g}", source)


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
            direction=asked.direction,
            turns=source is None or _last_prompt(source) != asked.prompt,
            **_common(asked),
        )
        if source is not None and (edges := server.folder(source.id) / EDGES).exists():
            _link(edges, folder / SOURCE_EDGES)
        model, count = _model(asked, source), asked.variations
        return _accept(server, owner, id, model, order, count, f"{stitched:g}", source)


def _accept(
    server: Server,
    owner: str,
    id: str,
    model: str,
    order: Order,
    count: int,
    seconds: str,
    source: Video | None,
) -> Video:
    """Keep an order, or so many that differ in their seeds; the first. All are kept, or none."""
    ids = [id, *(new_id("video") for _ in range(count - 1))]
    if count == 1:
        return server.accept(owner, id, model, order, seconds=seconds, source=source)
    first, *others = (
        replace(order, seed=order.seed + number, variations=ids) for number in range(count)
    )
    with ExitStack() as folders:
        for other in ids[1:]:
            folder = folders.enter_context(server.new_folder(other))
            for file in server.folder(id).iterdir():
                _link(file, folder / file.name)
        more = dict(zip(ids[1:], others, strict=True))
        return server.accept(owner, id, model, first, seconds=seconds, source=source, others=more)


def introduce(server: Server, owner: str, asked: Shown) -> Character:
    """Of a clip, somebody whom prompts can name."""
    server.check_room()
    with characters.new_folder(server) as folder:
        _store_source(server, owner, asked.video, folder)
        return characters.add(server, owner, asked.name, folder / SOURCE)


def _storyboard(asked: Created) -> list[dict[str, Any]]:
    """The shots, which begin before the video ends."""
    shots = [shot.model_dump() for shot in asked.storyboard or ()]
    if not shots and asked.transition is not None:
        message = "transition is between the shots of a storyboard, and there is none"
        raise APIError(400, message, param="transition", code="invalid_value")
    if shots and shots[-1]["start"] >= float(asked.seconds):
        message = f"a shot starts at {shots[-1]['start']:g}; the video has {asked.seconds} seconds"
        raise APIError(400, message, param="storyboard", code="invalid_value")
    return shots


def _reworded(order: Order, prompt: str) -> Order:
    """With one prompt from the first frame to the last."""
    return replace(order, prompt=prompt, storyboard=(), transition=None, variations=())


def _last_prompt(video: Video) -> str:
    """Of a video's last shot."""
    shots = video.order.get("storyboard")
    return shots[-1]["prompt"] if shots else video.prompt


def _common(asked: Made) -> dict[str, Any]:
    return {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "seed": secrets.randbelow(MAX_DRAWN) if asked.seed is None else asked.seed,
        "steps": asked.steps,
        "guidance_scale": asked.guidance_scale,
        "fps": asked.fps,
    }


def _model(asked: Made, source: Video | None) -> str:
    named = "model" in asked.model_fields_set
    return asked.model if named or source is None else source.model


def _measure(path: Path, video: Video | None) -> tuple[int, int, float]:
    """Width, height and seconds: of a video of ours as they were asked for."""
    if video is not None:
        return *size_of(video.size), float(video.seconds)
    source = Source(path)
    return source.width // 2 * 2, source.height // 2 * 2, source.seconds


def _store_reference(server: Server, owner: str, given: Any, folder: Path) -> None:
    file = folder / GIVEN
    with _naming("input_reference"):
        _take(server, owner, given, file)
        store_picture(file, folder / REFERENCE, server.settings.limits)
    file.unlink()


def _store_source(server: Server, owner: str, given: Any, folder: Path) -> Video | None:
    """The video that another is made of, as SOURCE; its row where it is one of the owner's."""
    if isinstance(given, dict) and "id" in given:
        source = _completed(server, owner, given["id"])
        _link(server.folder(source.id) / VIDEO, folder / SOURCE)
        return source
    file = folder / GIVEN
    with _naming("video"):
        _take(server, owner, given, file)
        store_clip(file, folder / SOURCE, server.settings.limits)
    file.rename(folder / PARENT)
    return None


def _completed(server: Server, owner: str, id: str) -> Video:
    with server.store.session() as session:
        source = videos.find(session, owner, id)
    if source.status != videos.COMPLETED:
        message = f"video {id} is {source.status}; one that is completed can be worked on"
        raise APIError(400, message, param="video", code="not_ready")
    return source


@contextmanager
def _naming(param: str) -> Iterator[None]:
    """Refusals of what a client gave name the field that it was given in."""
    try:
        yield
    except UsageError as error:
        error.param = param  # pyright: ignore[reportAttributeAccessIssue]  # for the answer
        raise
    except APIError as error:
        if error.status != 404:
            raise
        raise APIError(400, error.message, param=param, code="file_not_found") from None


def _take(server: Server, owner: str, given: Any, file: Path) -> None:
    """What was given, as it came: an upload, one of the owner's files, or what is at a URL."""
    if not isinstance(given, dict):
        _write(given, file)
    elif "file_id" in given:
        with server.store.session() as session:
            kept = files.find(session, owner, given["file_id"])
        _link(files.path(server, kept.id), file)
    else:
        server.fetcher.fetch(given["image_url"], file)


def _write(upload: Any, file: Path) -> None:
    with file.open("wb") as out:
        shutil.copyfileobj(upload.file, out)


def _link(source: Path, file: Path) -> None:
    """The same file under another name, so that it stays when the other goes."""
    try:
        os.link(source, file)
    except FileNotFoundError:
        raise APIError(404, "the file is gone", code="not_found") from None
    except OSError:  # a file system without links
        shutil.copyfile(source, file)
