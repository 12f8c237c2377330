"""What the word list says of a text."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field, field_validator

from ...requests.request import MAX_PROMPT_CHARS
from .. import answers as told
from .. import moderation
from ..asked import Fields
from ..tables import new_id
from .common import ERRORS, Owner, answers, body_of, documented

router = APIRouter(prefix="/v1/moderations", responses=ERRORS)
MAX_TEXTS, MAX_CHARS = 100, 100_000


class Moderated(Fields):
    """The body of POST /v1/moderations. Whatever model is asked for, the word list answers."""

    input: Any = Field(
        json_schema_extra={
            "description": f"a text, at most {MAX_TEXTS} of them with a result each, or a list of"
            ' {"type": "text", "text"} with one result in all'
        }
    )
    model: str | None = Field(None, max_length=200)

    @field_validator("input")
    @classmethod
    def _input(cls, value: Any) -> list[list[str]]:
        """The texts of each result."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not 0 < len(texts) <= MAX_TEXTS:
            raise ValueError(f"a text is expected, or a list of 1 to {MAX_TEXTS}")
        if all(isinstance(text, str) for text in texts):
            asked = [[text] for text in texts]
        else:
            asked = [[_text_of(part) for part in texts]]
        _check_length([text for texts in asked for text in texts])
        return asked


def _text_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "image_url":
        raise ValueError("pictures are not looked at; text is")
    if kind != "text" or not isinstance(part.get("text"), str):
        raise ValueError('texts are expected, or objects {"type": "text", "text"}')
    return part["text"]


def _check_length(texts: list[str]) -> None:
    if max(map(len, texts)) > MAX_PROMPT_CHARS or sum(map(len, texts)) > MAX_CHARS:
        raise ValueError(
            f"a text has at most {MAX_PROMPT_CHARS:,} characters, all together {MAX_CHARS:,}"
        )


@router.post("", **answers(told.Moderation), openapi_extra=documented(Moderated))
def create_moderation(
    owner: Owner, body: Annotated[Moderated, Depends(body_of(Moderated))]
) -> dict[str, Any]:
    """The categories that texts fall into, by a list of words: a score is 1 or 0."""
    results = [_result(moderation.judge(*texts)) for texts in body.input]
    return {"id": new_id("modr"), "model": moderation.NAME, "results": results}


def _result(found: tuple[str, ...]) -> dict[str, Any]:
    names = moderation.CATEGORIES
    return {
        "flagged": bool(found),
        "categories": {name: name in found for name in names},
        "category_scores": {name: float(name in found) for name in names},
        "category_applied_input_types": {name: ["text"] for name in names},
    }
