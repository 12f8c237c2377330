"""What clients may ask for, field by field. Numbers may come as text, as in any form."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from ..requests.request import MAX_GUIDANCE_SCALE, MAX_PROMPT_CHARS, MAX_SEED
from .characters import MAX_NAME
from .errors import APIError
from .orders import MAX_SECONDS, SIDES, STRENGTH

UNFIT = re.compile("[\x00\ud800-\udfff]")  # for a database, and no character anyway
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
MAX_SHOTS, MAX_VARIATIONS, MAX_CHARACTERS = 50, 4, 2
Model = TypeVar("Model", bound=BaseModel)
PICTURE: dict[str, Any] = {
    "description": "a file (jpg, png, webp), an object with image_url (a URL or a data: URL) or"
    " file_id, or such an object as JSON text"
}
CLIP: dict[str, Any] = {
    "description": "an MP4 file, or an object with the id of a video or the file_id of an MP4 file,"
    " also as JSON text"
}


def _says_something(value: str) -> str:
    if not value.strip():
        raise ValueError("it is empty; say what to show")
    return value


def _length(value: Any) -> str:
    try:
        seconds = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = float("nan")
    if not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"{str(value)[:40]!r} is no length; above 0, at most {MAX_SECONDS} works")
    return f"{seconds:g}"


def _clip(value: Any) -> Any:
    return _read(value, ("id", "file_id"))


Prompt = Annotated[
    str, Field(min_length=1, max_length=MAX_PROMPT_CHARS), AfterValidator(_says_something)
]
Seconds = Annotated[str, BeforeValidator(_length)]
Clip = Annotated[Any, BeforeValidator(_clip), Field(json_schema_extra=CLIP)]


class Fields(BaseModel):
    """What all of them have in common. A field that is not known is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, str) and UNFIT.search(value):
            raise ValueError("it holds a zero byte or half a character")
        return value


class Remixed(Fields):
    """The body of a remix."""

    prompt: Prompt


class Made(Remixed):
    """What every video but a remix may be asked with. Below the model, extensions of ours."""

    model: str = Field("sora-2", min_length=1, max_length=200)
    negative_prompt: str = Field("", max_length=MAX_PROMPT_CHARS)
    seed: int | None = Field(None, ge=0, le=MAX_SEED - 1000)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance_scale: float | None = Field(None, ge=1, le=MAX_GUIDANCE_SCALE)
    fps: float | None = Field(None, ge=1, le=120)
    variations: int = Field(1, ge=1, le=MAX_VARIATIONS, description="with seeds one after another")


class Shot(Fields):
    """One shot of a storyboard."""

    start: float = Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False, description="in seconds")
    prompt: Prompt


class Appearing(Fields):
    """A character that appears in a video."""

    id: str = Field(min_length=1, max_length=64)


class Created(Made):
    """The body of POST /v1/videos."""

    seconds: Seconds = Field("4", description=f"above 0, at most {MAX_SECONDS}")
    size: str = Field("720x1280", description="WxH, even sides")
    input_reference: Any = Field(None, json_schema_extra=PICTURE)
    storyboard: list[Shot] | None = Field(None, min_length=1, max_length=MAX_SHOTS)
    transition: Literal["continue", "cut"] | None = None
    characters: list[Appearing] | None = Field(None, max_length=MAX_CHARACTERS)

    @field_validator("storyboard", mode="before")
    @classmethod
    def _storyboard(cls, value: Any) -> Any:
        return _list(value, "start and prompt")

    @field_validator("characters", mode="before")
    @classmethod
    def _characters(cls, value: Any) -> Any:
        return _list(value, "the id of a character")

    @field_validator("storyboard")
    @classmethod
    def _ascends(cls, value: list[Shot] | None) -> list[Shot] | None:
        for before, after in pairwise(value or ()):
            if after.start <= before.start:
                raise ValueError(
                    f"a shot starts at {after.start:g} after one at {before.start:g}; starts ascend"
                )
        return value

    @field_validator("size")
    @classmethod
    def _size(cls, value: str) -> str:
        size_of(value)
        return value

    @field_validator("input_reference", mode="before")
    @classmethod
    def _reference(cls, value: Any) -> Any:
        return None if value is None else _read(value, ("image_url", "file_id"))


class Edited(Made):
    """The body of POST /v1/videos/edits."""

    video: Clip
    strength: float = Field(STRENGTH, gt=0, le=1)


class Extended(Made):
    """The body of POST /v1/videos/extensions."""

    video: Clip
    seconds: Seconds = Field("4", description="how much longer it becomes")
    direction: Literal["forward", "backward"] = "forward"


class Shown(Fields):
    """The body of POST /v1/videos/characters."""

    name: str = Field(min_length=1, max_length=MAX_NAME)
    video: Clip

    @field_validator("name")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it is empty; prompts call the character by it")
        return value


def check(model: type[Model], fields: dict[str, Any]) -> Model:
    """Fields as the model has them. Raises `APIError` 400 that names the first one at fault."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:80] or None
        if first["type"] == "extra_forbidden":
            inner = {"storyboard": Shot, "characters": Appearing}.get(str(first["loc"][0]), model)
            known = ", ".join((model if len(first["loc"]) == 1 else inner).model_fields)
            raise APIError(
                400,
                f"unknown field {param!r}; known are {known}",
                param=param,
                code="unknown_parameter",
            ) from None
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        said = first["msg"].removeprefix("Value error, ")
        raise APIError(400, f"{param}: {said}", param=param, code=code) from None


def size_of(size: str) -> tuple[int, int]:
    """Width and height. Raises `ValueError` for what no video could have."""
    match, (low, high) = SIZE.fullmatch(size), SIDES
    if match is None:
        raise ValueError(f"{size[:40]!r} is no size; WxH is expected, such as 720x1280")
    width, height = int(match[1]), int(match[2])
    if not all(low <= side <= high and side % 2 == 0 for side in (width, height)):
        raise ValueError(f"{size} does not fit; sides are even, from {low} to {high}")
    return width, height


def _list(value: Any, names: str) -> Any:
    """A list of objects, which a form may have as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"a list of objects with {names} is expected") from None


def _read(value: Any, names: tuple[str, ...]) -> Any:
    """A file as it is; else an object with exactly one of the names."""
    if hasattr(value, "file"):
        return value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    found = value if isinstance(value, dict) else {}
    if len(found) != 1 or not all(name in names and isinstance(found[name], str) for name in found):
        raise ValueError(f"a file is expected, or an object with {' or '.join(names)}")
    return found
