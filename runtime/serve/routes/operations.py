"""Whether the server lives, whether it works, and how much it does."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .common import Serving

router = APIRouter()


@router.get("/healthz")
async def healthz(server: Serving) -> JSONResponse:
    """200 once requests are accepted."""
    return JSONResponse({"status": "ok" if server.ready else "stopping"}, _status(server.ready))


@router.get("/readyz")
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


@router.get("/metrics")
def metrics(server: Serving) -> Response:
    """For Prometheus."""
    return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _status(good: bool) -> int:
    return 200 if good else 503
