"""What answers: a router for each resource."""

from fastapi import APIRouter

from . import (
    batches,
    characters,
    content,
    events,
    files,
    models,
    moderations,
    operations,
    provenance,
    videos,
    webhook_endpoints,
)

# Fixed paths (/v1/videos/edits, /v1/videos/characters) come before those with an id in their place.
ROUTERS: tuple[APIRouter, ...] = (
    operations.router,
    characters.router,
    videos.router,
    content.router,
    events.router,
    files.router,
    models.router,
    moderations.router,
    provenance.router,
    batches.router,
    webhook_endpoints.router,
)
