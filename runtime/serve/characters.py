"""Characters: names for how somebody looks, shown in a clip, to appear in videos."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from sqlalchemy import BigInteger, Index, Integer, String, func, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from ..media import clips
from .errors import APIError
from .orders import CHARACTERS
from .tables import Base, new_id, now, page_of

if TYPE_CHECKING:
    from .asked import Created
    from .server import Server

MAX_NAME = 80
REFERRED = "control"  # the kind of conditions that has references
LOOKS = 2  # frames of a clip that a model is shown


class Character(Base):
    """One whose clip was stored whole. `number` counts them in the order of their coming."""

    __tablename__ = "characters"
    __table_args__ = (
        Index("characters_by_owner", "owner", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    owner: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)


def as_object(character: Character) -> dict[str, Any]:
    """What clients see."""
    return {
        "id": character.id,
        "object": "character",
        "name": character.name,
        "created_at": character.created_at,
    }


def folder(server: Server) -> Path:
    """Where the clips of all characters are."""
    return server.settings.data / "characters"


def path(server: Server, id: str) -> Path:
    """Where a character's clip is."""
    return folder(server) / f"{id}.mp4"


def find(session: Session, owner: str, id: str) -> Character:
    """One of the owner's. Raises `APIError` 404 for another's as for none."""
    query = select(Character).where(Character.id == id, Character.owner == owner)
    if (character := session.scalar(query)) is None:
        message = f"there is no character {id[:80]!r}"
        raise APIError(404, message, param="character_id", code="not_found")
    return character


def page(
    session: Session, owner: str, after: str | None, limit: int, newest_first: bool
) -> tuple[list[Character], bool]:
    """At most `limit` of the owner's, those that follow `after`, and whether there are more."""
    last = None if after is None else find(session, owner, after).number
    own = select(Character).where(Character.owner == owner)
    return page_of(session, own, Character.number, last, limit, newest_first)


@contextmanager
def new_folder(server: Server) -> Iterator[Path]:
    """A folder for a clip on its way, gone at the end."""
    folder(server).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder(server)) as made:
        yield Path(made)


def add(server: Server, owner: str, name: str, clip: Path) -> Character:
    """Keep a clip that was written here under a name; it is moved."""
    id = new_id("char")
    size = clip.stat().st_size
    clip.rename(path(server, id))
    character = Character(id=id, owner=owner, name=name, bytes=size, created_at=now())
    try:
        with server.store.session() as session:
            session.add(character)
    except BaseException:
        path(server, id).unlink(missing_ok=True)
        raise
    return character


def cast(server: Server, owner: str, asked: Created) -> list[Character]:
    """Those who appear in a video. Raises `APIError` 400 for a model that is shown nobody."""
    ids = [one.id for one in asked.characters or ()]
    if not ids:
        return []
    engine = server.engines[server.resolve(asked.model)]
    if engine.checkpoint.presets.conditions != REFERRED:
        what = f"model {asked.model!r} is shown no references, so characters cannot appear"
        raise _miscast(f"{what}; a Wan VACE checkpoint is shown them, and without any this works")
    if len(set(ids)) < len(ids):
        raise _miscast(f"character {ids[0]} comes twice")
    query = select(Character).where(Character.owner == owner, Character.id.in_(ids))
    with server.store.session() as session:
        known = {character.id: character for character in session.scalars(query)}
    prompts = [asked.prompt, *(shot.prompt for shot in asked.storyboard or ())]
    for id in ids:
        if id not in known:
            raise _miscast(f"there is no character {id[:80]!r}")
        if not any(known[id].name in prompt for prompt in prompts):
            raise _miscast(f"character {id} is called {known[id].name!r}, and no prompt says so")
    return [known[id] for id in ids]


def store_looks(server: Server, cast: list[Character], into: Path) -> None:
    """Frames of the characters' clips, for the model to be shown."""
    for number, character in enumerate(cast):
        clip = path(server, character.id)
        if not clip.is_file():
            raise _miscast(f"the clip of character {character.id} is gone")
        count = clips.count_frames(clip)
        wanted = {count * (2 * look + 1) // (2 * LOOKS) for look in range(LOOKS)}
        for at, frame in enumerate(clips.open_frames(clip)):
            if at in wanted:
                name = CHARACTERS.replace("*", f"{number}-{at:06}")
                Image.fromarray(frame).save(into / name, compress_level=1)


def _miscast(message: str) -> APIError:
    return APIError(400, message, param="characters", code="invalid_value")


def delete(server: Server, owner: str, id: str) -> None:
    """Remove one of the owner's; videos that were made with it stay."""
    with server.store.session() as session:
        session.delete(find(session, owner, id))
    path(server, id).unlink(missing_ok=True)


def bytes_kept(session: Session) -> int:
    """What all clips take."""
    return int(session.scalar(select(func.sum(Character.bytes))) or 0)


def sweep(server: Server, left_alone: float) -> None:
    """Remove what has had no row for so many seconds: the process ended while it was stored."""
    if not folder(server).is_dir():
        return
    with server.store.session() as session:
        known = set(session.scalars(select(Character.id)))
    for found in folder(server).iterdir():
        if found.stem in known or found.stat().st_mtime >= time.time() - left_alone:
            continue
        if found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)
