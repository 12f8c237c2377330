"""The ASGI app: routes, errors as clients expect them, and what goes around every request."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from ..errors import KinemaError, UsageError
from .around import Around
from .databases import is_full, trouble_of
from .errors import APIError
from .limits import LimitBody
from .routes import ROUTERS
from .server import Server, full
from .settings import Settings

if TYPE_CHECKING:
    from ..engine import Engine

log = logging.getLogger("kinema.serve")


def create_app(
    engine: Engine | Mapping[str, Engine],
    settings: Settings | None = None,
    *,
    data: str | Path = "kinema-data",
) -> FastAPI:
    """The Videos API of an engine, or of several by name; the first answers to the hosted names.

    This call locks the data folder and brings its database up to date; accepted videos are worked
    on while the app's lifespan lasts. Mounted in another app, whose lifespan does not reach it,
    `app.state.server.start()` and `.stop()` do the same. Raises `UsageError` for a folder that
    another process serves.
    """
    from ... import __version__

    engines = engine if isinstance(engine, Mapping) else {engine.checkpoint.name: engine}
    server = Server(engines, settings or Settings(Path(data)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await asyncio.to_thread(server.stop)

    app = FastAPI(title="kinema", version=__version__, lifespan=lifespan)
    app.state.server = server
    for router in ROUTERS:
        app.include_router(router)
    _handle_errors(app)
    app.add_middleware(LimitBody, max_bytes=server.settings.limits.max_body_bytes)
    app.add_middleware(Around, metrics=server.metrics)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Every failure has the API's error object."""

    @app.exception_handler(APIError)
    async def refused(request: Request, error: APIError) -> JSONResponse:
        return _answer(request, error)

    @app.exception_handler(UsageError)
    async def unusable(request: Request, error: UsageError) -> JSONResponse:
        code, param = getattr(error, "code", None), getattr(error, "param", None)
        return _answer(
            request, APIError(400, str(error), code=code or "invalid_value", param=param)
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = str(first["loc"][-1])[:80]
        message = f"{param}: {first['msg']}"
        return _answer(request, APIError(400, message, param=param, code="invalid_value"))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path[:200]
        what = {404: f"there is nothing at {path}", 405: f"{request.method} has no use at {path}"}
        message = what.get(error.status_code, str(error.detail))
        return _answer(request, APIError(error.status_code, message, headers=error.headers))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        if _disk_is_full(error):
            return _answer(request, full("the disk is full; delete some videos"))
        if (trouble := trouble_of(error)) is not None:
            log.error("the database does not answer: %s", trouble)
            return _answer(request, _later())
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        return _answer(request, APIError(500, "the server failed; its log says why"))

    for kind in (KinemaError, OSError, SQLAlchemyError):
        app.exception_handler(kind)(unexpected)


def _answer(request: Request, error: APIError) -> JSONResponse:
    server: Server = request.app.state.server
    server.metrics.refusals.labels(str(error.status), error.code or error.type).inc()
    return JSONResponse(error.body(), error.status, headers=error.headers)


def _later() -> APIError:
    message = "the database does not answer; try again"
    return APIError(503, message, code="database_unavailable", headers={"Retry-After": "5"})


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if is_full(error):
            return True
        error = error.__cause__
    return False
