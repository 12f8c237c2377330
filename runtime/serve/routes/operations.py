"""Whether the server lives, whether it works, and how much it does."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from ..answers import Alive, Readiness
from .common import Serving

router = APIRouter()


def _both(model: type[BaseModel]) -> dict[str, Any]:
    bad = {"description": "not now", "model": model}
    return {"response_model": None, "responses": {200: {"model": model}, 503: bad}}


@router.get("/healthz", **_both(Alive))
async def healthz(server: Serving) -> JSONResponse:
    """200 once requests are accepted."""
    return JSONResponse({"status": "ok" if server.ready else "stopping"}, _status(server.ready))


@router.get("/readyz", **_both(Readiness))
def readyz(server: Serving) -> JSONResponse:
    """200 while new videos can be accepted: the database answers, and there is room."""
    checks = {"accepting": server.ready}
    for name, check in (("database", server.store.ping), ("room", server.check_room)):
        try:
            check()
            checks[name] = True
        except Exception:
            checks[name] = False
    return JSONResponse({"checks": checks}, _status(all(checks.values())))


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(server: Serving) -> Response:
    """For Prometheus."""
    return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _status(good: bool) -> int:
    return 200 if good else 503
