"""Fetching what a client names by URL: from public addresses, of few kinds, within limits.

Every redirect is looked up and checked as the first URL was.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin

from ..errors import UsageError
from ..files import reason_of, whole_or_nothing
from .addresses import Target, check_url
from .calling import FAILURES, call
from .limits import Limits

REDIRECTS = 3
MOVED = (301, 302, 303, 307, 308)
CHUNK = 64 << 10
# What a host may say that it sends; what it sends is judged when it is decoded.
KINDS = (
    "image/jpeg",
    "image/png",
    "image/webp",
    "video/mp4",
    "video/quicktime",
    "application/octet-stream",
    "binary/octet-stream",
)


class Fetcher:
    """Fetches within limits. `allow_private`: from private addresses too."""

    def __init__(self, limits: Limits, allow_private: bool = False) -> None:
        self.limits, self.allow_private = limits, allow_private

    def fetch(self, url: str, into: Path) -> Path:
        """Write what is at a URL (http, https, data) to a file, whole or not at all.

        Raises `UsageError`, and `KinemaError` for a disk that is full.
        """
        chunks = self._embedded(url) if url[:5].lower() == "data:" else self._fetched(url)
        with whole_or_nothing(into) as unfinished, unfinished.open("wb") as out:
            size = 0
            for chunk in chunks:
                size += len(chunk)
                self._check_size(size)
                out.write(chunk)
        return into

    def _fetched(self, url: str) -> Iterator[bytes]:
        until = time.monotonic() + self.limits.fetch_seconds
        for _ in range(REDIRECTS + 1):
            target = check_url(url, self.allow_private)
            moved = yield from self._get(target, max(0.001, until - time.monotonic()))
            if moved is None:
                return
            url = _follow(url, moved)
        raise UsageError(f"the URL redirects more than {REDIRECTS} times")

    def _get(self, target: Target, seconds: float) -> Iterator[bytes]:
        """The body; returns where it is instead, if the host says so."""
        try:
            with call(target, seconds) as answer:
                if answer.status in MOVED and answer.headers["location"]:
                    return answer.headers["location"]
                if answer.status != 200:
                    raise UsageError(f"the URL answers {answer.status}")
                check_kind(answer.headers.get_content_type())
                self._check_size(answer.length or 0)
                received = 0
                while chunk := answer.read1(CHUNK):
                    received += len(chunk)
                    yield chunk
                if answer.length:
                    raise ConnectionError(f"it ended after {received:,} bytes, before its end")
        except FAILURES as error:
            raise UsageError(f"the URL cannot be fetched: {reason_of(error)}") from None

    def _check_size(self, size: int) -> None:
        if size > self.limits.fetch_bytes:
            raise UsageError(f"what is at the URL has over {self.limits.fetch_bytes:,} bytes")

    def _embedded(self, url: str) -> Iterator[bytes]:
        head, comma, body = url[5:].partition(",")
        if not comma:
            raise UsageError("the data: URL has no comma, and so no data")
        # Base64 takes 4 characters for 3 bytes, percent signs at most 3 for one.
        is_base64 = head.lower().endswith(";base64")
        self._check_size(len(body) * 3 // 4 - 2 if is_base64 else len(body) // 3)
        check_kind(head.split(";")[0].strip().lower() or "text/plain")
        try:
            yield base64.b64decode(body, validate=True) if is_base64 else unquote_to_bytes(body)
        except (binascii.Error, ValueError):
            raise UsageError("the data: URL is not base64") from None


def check_kind(kind: str) -> None:
    """Raises `UsageError` for a content type that is neither picture nor clip."""
    if kind not in KINDS:
        known = ", ".join(KINDS[:4])
        raise UsageError(f"what is at the URL is {kind[:80]!r}; {known} work")


def _follow(url: str, moved: str) -> str:
    try:
        target = urljoin(url, moved)
    except ValueError:
        raise UsageError("the URL redirects to one that cannot be read") from None
    if url[:6].lower() == "https:" and target[:6].lower() != "https:":
        raise UsageError("the URL redirects from https to something else")
    return target
