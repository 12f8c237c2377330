"""Webhook endpoints: where an owner is told that work is done."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field
from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from .. import answers as told
from ..asked import Fields
from ..errors import APIError
from ..tables import now
from ..webhooks import EVENTS, WebhookEndpoint, event_of
from .common import (
    ERRORS,
    JSON_ONLY,
    PAGE,
    After,
    Id,
    Limit,
    Owner,
    Serving,
    answers,
    body_of,
    documented,
    page,
)

router = APIRouter(prefix="/v1", responses=ERRORS)
MAX_ENDPOINTS = 100  # of one owner: each is called for every event
HINT = 4  # characters of a secret that are shown

Name = Annotated[str, Field(min_length=1, max_length=200)]
Url = Annotated[str, Field(min_length=1, max_length=2000)]
EventTypes = Annotated[list[str], Field(min_length=1, max_length=100)]


class Added(Fields):
    """The body of POST /v1/webhook_endpoints."""

    name: Name
    url: Url
    event_types: EventTypes


class Changed(Fields):
    """The body of POST /v1/webhook_endpoints/{id}: what is to be otherwise."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class Rotated(Fields):
    """The body of POST /v1/webhook_endpoints/{id}/rotate_secret."""

    keep_old_secret_active_for_24_hours: bool = False


class Tried(Fields):
    """The body of POST /v1/webhook_endpoints/{id}/test."""

    event_type: str = Field(min_length=1, max_length=100)


@router.get("/webhook_event_types", **answers(told.EventTypes))
def list_event_types(owner: Owner) -> dict[str, Any]:
    """The events that endpoints can be told."""
    return {"object": "list", "data": list(EVENTS)}


@router.post(
    "/webhook_endpoints",
    **answers(told.WebhookEndpointWithSecret),
    openapi_extra=documented(Added, *JSON_ONLY),
)
def create_endpoint(
    server: Serving, owner: Owner, body: Annotated[Added, Depends(body_of(Added))]
) -> dict[str, Any]:
    """Have a URL told of events; the answer has the secret that signs them, once."""
    with server.store.session() as session:
        if len(_page(session, owner, None, MAX_ENDPOINTS)[0]) >= MAX_ENDPOINTS:
            message = f"there are {MAX_ENDPOINTS} webhook endpoints; no more are told"
            raise APIError(400, message, code="too_many_endpoints")
    types = _unique(body.event_types)
    endpoint, secret = server.webhooks.add_endpoint(owner, body.name, body.url, types)
    return {**as_object(endpoint), "signing_secret": secret}


@router.get("/webhook_endpoints", **answers(told.WebhookEndpointPage))
def list_endpoints(
    server: Serving,
    owner: Owner,
    after: After = None,
    limit: Limit = PAGE,
) -> dict[str, Any]:
    """A page of the owner's endpoints, the newest first."""
    with server.store.session() as session:
        found, has_more = _page(session, owner, after, limit)
    data = [as_object(endpoint) for endpoint in found]
    return page(data, has_more)


@router.get("/webhook_endpoints/{endpoint_id}", **answers(told.WebhookEndpoint))
def retrieve_endpoint(server: Serving, owner: Owner, endpoint_id: Id) -> dict[str, Any]:
    """An endpoint, without its secret."""
    with server.store.session() as session:
        return as_object(_find(session, owner, endpoint_id))


@router.post(
    "/webhook_endpoints/{endpoint_id}",
    **answers(told.WebhookEndpoint),
    openapi_extra=documented(Changed, *JSON_ONLY),
)
def update_endpoint(
    server: Serving,
    owner: Owner,
    endpoint_id: Id,
    body: Annotated[Changed, Depends(body_of(Changed))],
) -> dict[str, Any]:
    """Change what is named; what was to be told before goes to the new URL."""
    changes = body.model_dump(exclude_none=True)
    if "event_types" in changes:
        changes["event_types"] = _unique(changes["event_types"])
    with server.store.session() as session:
        endpoint = _find(session, owner, endpoint_id)
        changes = {k: value for k, value in changes.items() if getattr(endpoint, k) != value}
        if changes.keys() & {"url", "event_types"}:
            url = changes.get("url", endpoint.url)
            server.webhooks.check(url, changes.get("event_types", endpoint.event_types))
        for name, value in changes.items():
            setattr(endpoint, name, value)
        endpoint.updated_at = now() if changes else endpoint.updated_at
        return as_object(endpoint)


@router.delete("/webhook_endpoints/{endpoint_id}", **answers(told.WebhookEndpointDeleted))
def delete_endpoint(server: Serving, owner: Owner, endpoint_id: Id) -> dict[str, Any]:
    """Tell it nothing more, not even what it was to be told."""
    with server.store.session() as session:
        session.delete(_find(session, owner, endpoint_id))
    return {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    **answers(told.WebhookEndpointWithSecret),
    openapi_extra=documented(Rotated, *JSON_ONLY),
)
def rotate_secret(
    server: Serving,
    owner: Owner,
    endpoint_id: Id,
    body: Annotated[Rotated, Depends(body_of(Rotated))],
) -> dict[str, Any]:
    """A new secret, shown once; the old one signs beside it for a day if that is asked for."""
    with server.store.session() as session:
        endpoint = _find(session, owner, endpoint_id)
        secret = endpoint.rotate(body.keep_old_secret_active_for_24_hours)
        return {**as_object(endpoint), "signing_secret": secret}


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    **answers(told.WebhookTest),
    openapi_extra=documented(Tried, *JSON_ONLY),
)
def test_endpoint(
    server: Serving,
    owner: Owner,
    endpoint_id: Id,
    body: Annotated[Tried, Depends(body_of(Tried))],
) -> dict[str, Any]:
    """Tell it of something that did not happen, now and once; the status that it answers."""
    with server.store.session() as session:
        endpoint = _find(session, owner, endpoint_id)
    if body.event_type not in EVENTS:
        message = f"event type {body.event_type!r} is not known: {', '.join(EVENTS)}"
        raise APIError(400, message, param="event_type", code="invalid_value")
    kind = body.event_type.partition(".")[0]
    status = server.webhooks.tell(endpoint, event_of(body.event_type, f"{kind}_test"))
    if status is None:
        message = f"webhook endpoint {endpoint.id} did not answer"
        raise APIError(400, message, code="endpoint_unreachable")
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint.id,
        "event_type": body.event_type,
        "status_code": status,
        "success": True,
    }


def as_object(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """What clients see."""
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at or endpoint.created_at,
        "signing_secret_hint": f"whsec_...{endpoint.secret[-HINT:]}",
    }


def _find(session: Session, owner: str, id: str) -> WebhookEndpoint:
    endpoint = session.get(WebhookEndpoint, id)
    if endpoint is None or endpoint.owner != owner:
        message = f"there is no webhook endpoint {id[:80]!r}"
        raise APIError(404, message, param="webhook_endpoint_id", code="not_found")
    return endpoint


def _page(
    session: Session, owner: str, after: str | None, limit: int
) -> tuple[list[WebhookEndpoint], bool]:
    """At most `limit`, newest first; of one second, those with the greatest id first."""
    place = WebhookEndpoint.created_at, WebhookEndpoint.id
    query = select(WebhookEndpoint).where(WebhookEndpoint.owner == owner)
    if after is not None:
        last = _find(session, owner, after)
        query = query.where(tuple_(*place) < tuple_(last.created_at, last.id))
    query = query.order_by(*(column.desc() for column in place))
    found = list(session.scalars(query.limit(limit + 1)))
    return found[:limit], len(found) > limit


def _unique(types: list[str]) -> list[str]:
    return list(dict.fromkeys(types))
