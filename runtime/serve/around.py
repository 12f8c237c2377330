"""What goes around every request: its id, its line in the log, its time, and a span if traced."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from .logs import request_id

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .metrics import Metrics

log = logging.getLogger("kinema.serve.access")
OURS = re.compile(rb"[A-Za-z0-9_.-]{1,80}")


class Around:
    """ASGI middleware. A request may bring its id as `x-request-id`; the answer carries it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        id = given.decode() if OURS.fullmatch(given) else f"req_{uuid4().hex}"
        started, status, ms = time.perf_counter(), 0, 0.0

        async def answer(message: Message) -> None:
            nonlocal status, ms
            if message["type"] == "http.response.start":
                status, ms = message["status"], 1000 * (time.perf_counter() - started)
                taken = f"{ms:.0f}".encode()
                own = [(b"x-request-id", id.encode()), (b"openai-processing-ms", taken)]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        token = request_id.set(id)
        try:
            with span(scope["method"], id) as made:
                await self.app(scope, receive, answer)
                if made is not None:
                    made.update_name(f"{scope['method']} {_route(scope)}")
                    made.set_attribute("http.response.status_code", status)
        finally:
            self.metrics.answer.labels(scope["method"], _route(scope)).observe(ms / 1000)
            fields = {"method": scope["method"], "path": scope["path"], "status": status}
            log.info("request", extra={"fields": {**fields, "ms": round(ms, 1)}})
            request_id.reset(token)


def _route(scope: Scope) -> str:
    """The route's path, the same for all ids."""
    return getattr(scope.get("route"), "path", "unknown")


@contextmanager
def span(name: str, id: str) -> Iterator[Any]:
    """A span of OpenTelemetry, where that is installed."""
    try:
        from opentelemetry import trace
    except ImportError:
        yield None
        return
    with trace.get_tracer("kinema").start_as_current_span(name) as made:
        made.set_attribute("kinema.request_id", id)
        yield made
