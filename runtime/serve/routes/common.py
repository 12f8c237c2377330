"""What routes share: the server, who asks, and a body's fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Path, Request
from pydantic import BaseModel

from ..asked import check
from ..body import read_body
from ..errors import APIError
from ..server import Server

Model = TypeVar("Model", bound=BaseModel)
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {}}}
    for status, text in {
        400: "a field that does not fit",
        401: "no key, or one that is not known",
        404: "no such thing",
        409: "not now",
        413: "a body that is too large",
        429: "too many requests, or too long a queue",
        503: "the server is stopping",
        507: "no room",
    }.items()
}


def serving(request: Request) -> Server:
    """The server of this app."""
    return request.app.state.server


def owner_of(request: Request) -> str:
    """Who asks, by the key. Raises `APIError` 401 and 429."""
    server = serving(request)
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    owner = server.keys.owner_of(token.strip() if scheme.lower() == "bearer" else None)
    if owner is None:
        message = "the API key is missing or not known; send it as Authorization: Bearer KEY"
        raise APIError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
    server.limiter.request(owner)
    return owner


Serving = Annotated[Server, Depends(serving)]
Owner = Annotated[str, Depends(owner_of)]
VideoId = Annotated[str, Path(pattern="^[A-Za-z0-9_-]+$", max_length=80)]


def body_of(model: type[Model]) -> Callable[[Request], Any]:
    """A dependency: the body of a request, JSON or a form, as a model."""

    async def read(request: Request, owner: Owner) -> Model:
        if not serving(request).ready:
            raise APIError(503, "the server is stopping", headers={"Retry-After": "5"})
        return check(model, await read_body(request))

    return read


def documented(model: type[BaseModel]) -> dict[str, Any]:
    """How the OpenAPI description tells of a body that `body_of` reads."""
    schema = model.model_json_schema()
    kinds = ("application/json", "multipart/form-data")
    return {"requestBody": {"required": True, "content": {k: {"schema": schema} for k in kinds}}}
