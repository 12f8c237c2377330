"""Characters: made of clips, and named in prompts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from .. import answers as told
from .. import characters
from ..asked import Shown
from ..ordering import introduce
from .common import (
    ERRORS,
    PAGE,
    After,
    Id,
    Limit,
    Order,
    Owner,
    Serving,
    answers,
    body_of,
    documented,
    page,
)

router = APIRouter(prefix="/v1/videos/characters", responses=ERRORS)


@router.post("", **answers(told.Character), openapi_extra=documented(Shown))
def create_character(
    server: Serving, owner: Owner, body: Annotated[Shown, Depends(body_of(Shown))]
) -> dict[str, Any]:
    """Give whoever a clip shows a name."""
    return characters.as_object(introduce(server, owner, body))


@router.get("", **answers(told.CharacterPage))
def list_characters(
    server: Serving,
    owner: Owner,
    after: After = None,
    limit: Limit = PAGE,
    order: Order = "desc",
) -> dict[str, Any]:
    """A page of the owner's characters, the newest first."""
    with server.store.session() as session:
        found, has_more = characters.page(session, owner, after, limit, order == "desc")
    data = [characters.as_object(character) for character in found]
    return page(data, has_more)


@router.get("/{character_id}", **answers(told.Character))
def retrieve_character(server: Serving, owner: Owner, character_id: Id) -> dict[str, Any]:
    """A character's name."""
    with server.store.session() as session:
        return characters.as_object(characters.find(session, owner, character_id))


@router.delete("/{character_id}", **answers(told.CharacterDeleted))
def delete_character(server: Serving, owner: Owner, character_id: Id) -> dict[str, Any]:
    """Remove a character; videos that it appears in stay."""
    characters.delete(server, owner, character_id)
    return {"id": character_id, "object": "character.deleted", "deleted": True}
