"""Calls to hosts that clients name: one connection each, to the address that was checked."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from .addresses import PORTS, Target

FAILURES = (OSError, http.client.HTTPException)  # what a call may raise


@contextmanager
def call(
    target: Target,
    seconds: float,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Iterator[http.client.HTTPResponse]:
    """The answer of a host; the connection ends with the context, or after `seconds` in all.

    Redirects are not followed, and no proxy of the environment is used. Raises `FAILURES`.
    """
    connection = _Pinned(target, seconds)
    watch = threading.Timer(seconds, connection.cut)  # each read may be in time, all of them late
    watch.daemon = True
    watch.start()
    try:
        own = {"User-Agent": "kinema", "Accept-Encoding": "identity", "Connection": "close"}
        connection.request(method, target.path, body, {**own, **(headers or {})})
        with connection.getresponse() as answer:
            yield answer
        if connection.late:  # a body without a length just ends
            raise TimeoutError(f"it took over {seconds:g} seconds")
    except FAILURES:
        if connection.late:
            raise TimeoutError(f"it took over {seconds:g} seconds") from None
        raise
    finally:
        watch.cancel()
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to the target's address; with TLS, it is the target's host that is checked."""

    def __init__(self, target: Target, seconds: float) -> None:
        super().__init__(target.host, target.port, timeout=seconds)
        self.target, self.late = target, False
        self.default_port = PORTS[target.parts.scheme]
        self._wire: socket.socket | None = None  # `sock` is let go once an answer begins

    def connect(self) -> None:
        self.sock = self._reach()
        if self.target.parts.scheme == "https":
            self.sock = ssl.create_default_context().wrap_socket(
                self.sock, server_hostname=self.target.host, do_handshake_on_connect=False
            )
        self._wire = self.sock
        if self.late:
            raise TimeoutError
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.do_handshake()

    def _reach(self) -> socket.socket:
        """A connection to the first address that takes one; they share the time there is."""
        *others, last = self.target.addresses
        assert self.timeout is not None  # none is made without
        share = self.timeout / (1 + len(others))
        for address in others:
            with suppress(OSError):
                made = socket.create_connection((address, self.port), share)
                made.settimeout(self.timeout)
                return made
        return socket.create_connection((last, self.port), self.timeout)

    def cut(self) -> None:
        """End it from another thread, whatever it waits for."""
        self.late, wire = True, self._wire
        if wire is not None:
            with suppress(OSError):
                # That of an SSL socket would forget its keys while another thread reads.
                socket.socket.shutdown(wire, socket.SHUT_RDWR)
