"""What a client sent, as one nested dict: JSON, or a form whose names have brackets.

The official client flattens what is nested into names such as `input_reference[image_url]` and
`characters[][id]`, and all numbers into text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from .errors import APIError

NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_FILES, MAX_FIELDS, MAX_PART = 8, 200, 32 << 20  # bytes: a picture as a data URL is one field


async def read_body(request: Request) -> dict[str, Any]:
    """The fields of a request; files are `UploadFile`s. An empty body has none."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in FORMS:
        return nest((await _form(request)).multi_items())
    raw = await request.body()
    if not raw.strip():
        return {}
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise APIError(400, "the body is neither JSON nor a form", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise APIError(400, f"the body is a JSON {type(fields).__name__}; an object is expected")
    return fields


async def _form(request: Request) -> FormData:
    try:
        return await request.form(
            max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_PART
        )
    except HTTPException as error:
        raise APIError(400, f"the form cannot be read: {error.detail}") from None


def nest(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Fields of a form as JSON would have them: `a[b]=1` is {"a": {"b": "1"}}, `a[]=1` a list, and
    `a[][b]` a list of objects, of which one ends where a name comes again."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if isinstance(value, str) and "\x00" in value:
            raise APIError(400, f"field {name[:40]!r} holds a zero byte", param=name[:40])
        match = NAME.fullmatch(name)
        if match is None:
            raise APIError(400, f"field name {name[:40]!r} cannot be read", param=name[:40])
        keys = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        _put(fields, keys, value, name)
    return fields


def _put(place: dict[str, Any], keys: list[str], value: Any, name: str) -> None:
    key, *rest = keys
    if not rest:
        if key in place:
            raise APIError(400, f"field {name[:40]!r} was given twice", param=key)
        place[key] = value
    elif rest[0] == "":
        _append(_child(place, key, [], name), rest[1:], value, name)
    else:
        _put(_child(place, key, {}, name), rest, value, name)


def _append(items: list[Any], keys: list[str], value: Any, name: str) -> None:
    if not keys:
        items.append(value)
        return
    if not items or not isinstance(items[-1], dict) or keys[0] in items[-1]:
        items.append({})
    _put(items[-1], keys, value, name)


def _child(place: dict[str, Any], key: str, empty: Any, name: str) -> Any:
    found = place.setdefault(key, empty)
    if not isinstance(found, type(empty)):
        raise APIError(400, f"field {name[:40]!r} does not fit the others", param=key)
    return found


def is_file(value: Any) -> bool:
    """Whether a field is an upload."""
    return isinstance(value, UploadFile)
