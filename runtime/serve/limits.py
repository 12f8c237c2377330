"""How much one client may ask for: requests a minute, videos that wait, and the size of bodies."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import APIError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MINUTE = 60.0


@dataclass(frozen=True)
class Limits:
    """What one may ask for.

    For each key: requests_per_minute (None: any number), max_queued videos that wait, max_running
    that take turns. For each request: bytes of a body and of a picture, pixels of a picture, pixels
    of all frames of a clip, and its seconds; of what is fetched by URL, seconds and bytes.
    """

    requests_per_minute: int | None = None
    max_queued: int = 100
    max_running: int = 4
    max_body_bytes: int = 200 << 20
    max_image_bytes: int = 32 << 20
    max_pixels: int = 40_000_000
    max_clip_pixels: int = 4_000_000_000
    max_clip_seconds: float = 120.0
    fetch_seconds: float = 20.0
    fetch_bytes: int = 32 << 20


class Limiter:
    """Counts what each owner asks for. Raises `APIError` 429 that says when to come again."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self._lock = limits, threading.Lock()
        self._asked: dict[str, deque[float]] = {}

    def request(self, owner: str) -> None:
        """One more request."""
        most, now = self.limits.requests_per_minute, time.monotonic()
        if most is None:
            return
        with self._lock:
            asked = self._asked.setdefault(owner, deque())
            while asked and asked[0] <= now - MINUTE:
                asked.popleft()
            if len(asked) < most:
                asked.append(now)
                return
            wait = asked[0] + MINUTE - now
        message = f"more than {most} requests in a minute"
        raise _later(message, "rate_limit_exceeded", wait)

    def queue(self, owner: str, queued: int, seconds_left: float | None, coming: int = 1) -> None:
        """So many more videos, beside `queued` of the owner's that wait; all or none."""
        if queued + coming > self.limits.max_queued:
            message = f"{queued} videos wait; at most {self.limits.max_queued} may"
            message += f", and {coming} would come" if coming > 1 else ""
            raise _later(message, "queue_full", min(seconds_left or 1.0, MINUTE))


class LimitBody:
    """ASGI middleware: a body beyond `max_bytes` is refused, however its length is told."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > self.max_bytes:
            await self._refuse(send)
            return
        count, begun = 0, False

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.max_bytes:
                raise self._error()
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except APIError as error:
            if begun or error.status != 413:
                raise
            await self._refuse(send)

    def _error(self) -> APIError:
        message = f"the body is larger than {self.max_bytes:,} bytes"
        return APIError(413, message, code="body_too_large")

    async def _refuse(self, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        body = json.dumps(self._error().body()).encode()
        await send({"type": "http.response.body", "body": body})


def _later(message: str, code: str, seconds: float) -> APIError:
    wait = str(max(1, math.ceil(seconds)))  # who comes then is let in
    return APIError(
        429, f"{message}; try again in {wait} s", code=code, headers={"Retry-After": wait}
    )
