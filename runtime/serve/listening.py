"""The app on a socket, by uvicorn."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import uvicorn

if TYPE_CHECKING:
    from fastapi import FastAPI


class HttpServer(uvicorn.Server):
    """Tells the app as soon as it is to stop.

    By itself uvicorn waits for open answers first: streams of events, which end when the app stops.
    """

    def __init__(self, app: FastAPI, stop_seconds: float | None) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            # Declared as whole seconds, and given to asyncio as it is.
            timeout_graceful_shutdown=stop_seconds,  # pyright: ignore[reportArgumentType]
        )
        super().__init__(config)
        self.app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.server.refuse()
        await super().shutdown(sockets)


def listen(app: FastAPI, bound: socket.socket, stop_seconds: float | None) -> None:
    """Serve until a signal; `stop_seconds` is how long answers under way may take then."""
    HttpServer(app, stop_seconds).run(sockets=[bound])
