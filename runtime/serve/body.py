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
    `a[][b]` a list of objects, each of which takes a name once. (The official client sends all of
    one name before those of the next.) Objects of different names cannot be told apart so."""
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if isinstance(value, str) and "\x00" in value:
            raise APIError(400, f"field {name[:40]!r} holds a zero byte", param=name[:40])
        match = NAME.fullmatch(name)
        if match is None:
            raise APIError(400, f"field name {name[:40]!r} cannot be read", param=name[:40])
        keys = [match[1], *re.findall(r"\[([^\[\]]*)\]", match[2])]
        _put(fields, keys, value, name)
    _check_lists(fields)
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
    objects = (item for item in items if isinstance(item, dict) and keys[0] not in item)
    if (item := next(objects, None)) is None:
        items.append(item := {})
    _put(item, keys, value, name)


def _check_lists(value: Any, name: str = "") -> None:
    """Raises `APIError` 400 for a list of objects of different names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_lists(inner, key)
    elif isinstance(value, list):
        if len({frozenset(item) for item in value if isinstance(item, dict)}) > 1:
            message = f"objects of {name[:40]!r} have different fields; send it as one JSON text"
            raise APIError(400, message, param=name[:40])
        for inner in value:
            _check_lists(inner, name)


def _child(place: dict[str, Any], key: str, empty: Any, name: str) -> Any:
    found = place.setdefault(key, empty)
    if not isinstance(found, type(empty)):
        raise APIError(400, f"field {name[:40]!r} does not fit the others", param=key)
    return found


def is_file(value: Any) -> bool:
    """Whether a field is an upload."""
    return isinstance(value, UploadFile)
