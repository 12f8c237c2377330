"""What routes share: the server, who asks, and a body's fields."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Path, Query, Request, Security
from fastapi.security import HTTPBearer
from pydantic import BaseModel

from ..answers import Error
from ..asked import check
from ..body import read_body
from ..errors import APIError
from ..server import Server

Model = TypeVar("Model", bound=BaseModel)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Error}
    for status, text in {
        400: "a field that does not fit",
        401: "no key, or one that is not known",
        403: "not by request",
        404: "no such thing",
        409: "not now",
        413: "a body that is too large",
        429: "too many requests, or too long a queue",
        500: "the server failed",
        503: "the server is stopping, or its database does not answer",
        507: "no room",
        "4XX": "refused",
    }.items()
}


# Neither of these waits for anything: `async` spares each request two visits to a thread.
async def serving(request: Request) -> Server:
    """The server of this app."""
    return request.app.state.server


_Key = Annotated[Any, Security(HTTPBearer(auto_error=False, description="where there are keys"))]


async def owner_of(request: Request, _described: _Key = None) -> str:
    """Who asks, by the key. Raises `APIError` 401 and 429."""
    server = await serving(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    owner = server.keys.owner_of(token.strip() if scheme.lower() == "bearer" else None)
    if owner is None:
        message = "the API key is missing or not known; send it as Authorization: Bearer KEY"
        raise APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    server.limiter.request(owner)
    return owner


Serving = Annotated[Server, Depends(serving)]
Owner = Annotated[str, Depends(owner_of)]
MAX_PAGE, PAGE = 100, 20  # things of a list that are told at once
ID: dict[str, Any] = {"pattern": "^[A-Za-z0-9_-]+$", "max_length": 80}
Id = Annotated[str, Path(**ID)]
After = Annotated[str | None, Query(**ID)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Order = Literal["asc", "desc"]
JSON_ONLY = ("application/json",)


def page(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A part of a list as clients see it; the next one begins `after` its last id."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def body_of(model: type[Model]) -> Callable[..., Any]:
    """A dependency: the body of a request, JSON or a form, as a model."""

    async def read(request: Request, owner: Owner) -> AsyncIterator[Model]:
        if not (await serving(request)).ready:
            raise APIError(503, "the server is stopping", headers={"Retry-After": "5"})
        try:
            yield check(model, await read_body(request))
        finally:
            await request.close()  # the files of a form

    return read


def answers(model: type[BaseModel]) -> dict[str, Any]:
    """How the OpenAPI description tells of what a route answers; nothing is converted to it."""
    return {"response_model": None, "responses": {200: {"model": model}}}


def answers_files(*kinds: str) -> dict[str, Any]:
    """As `answers`, for bytes of these media types, also in parts."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    whole, part = {"content": content}, {"description": "the range asked for", "content": content}
    return {"response_model": None, "responses": {200: whole, 206: part}}


def documented(model: type[BaseModel], *kinds: str) -> dict[str, Any]:
    """How the OpenAPI description tells of a body that `body_of` reads; of JSON and forms, or of
    those media types that are named."""
    schema = model.model_json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    kinds = kinds or ("application/json", "multipart/form-data")
    return {"requestBody": {"required": True, "content": {k: {"schema": schema} for k in kinds}}}


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema with its named parts in their places: inside another document names lead nowhere."""
    if isinstance(schema, list):
        return [_inlined(inner, parts) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rsplit("/", 1)[-1]], parts)
    return {name: _inlined(inner, parts) for name, inner in schema.items()}
