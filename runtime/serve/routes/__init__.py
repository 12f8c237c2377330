"""What answers: a router for each resource."""

from fastapi import APIRouter

from . import content, events, operations, videos

# Fixed paths (/v1/videos/edits) come before those with an id in their place.
ROUTERS: tuple[APIRouter, ...] = (
    operations.router,
    videos.router,
    content.router,
    events.router,
)
