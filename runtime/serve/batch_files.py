"""The files that batches are asked with: requests as clients write them, JSON a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .asked import UNFIT
from .batches import ENDPOINT, MAX_CUSTOM_ID

MAX_LINES, MAX_ERRORS = 50_000, 100


@dataclass(frozen=True)
class Line:
    """One request. `text` is its body as JSON."""

    number: int
    custom_id: str
    body: dict[str, Any]
    text: str


@dataclass
class Reader:
    """The requests of a file, in order; `errors` are what keeps it from being a batch, so far."""

    path: Path
    count: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    models: set[str] = field(default_factory=set)

    @property
    def model(self) -> str | None:
        """The one that all requests name."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    def __iter__(self) -> Iterator[Line]:
        """Nothing more comes once there are errors, but more errors."""
        seen: set[str] = set()
        try:
            with self.path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    if raw.strip():
                        yield from self._read(number, raw, seen)
                    if len(self.errors) >= MAX_ERRORS or self.count > MAX_LINES:
                        break
        except FileNotFoundError:
            self._note("file_not_found", "the input file is gone", None)
            return
        if self.count > MAX_LINES:
            self._note("too_many_lines", f"a batch has at most {MAX_LINES:,} lines", None)
        if self.count == 0:
            self._note("empty_file", "the input file has no lines", None)

    def _read(self, number: int, raw: bytes, seen: set[str]) -> Iterator[Line]:
        self.count += 1
        try:
            request = json.loads(raw)
            text = json.dumps(request.get("body")) if isinstance(request, dict) else ""
        except (ValueError, RecursionError):
            self._note("invalid_json_line", "the line is no JSON", number)
            return
        fault = _fault(request, seen)
        if fault is not None:
            self._note(*fault[:2], number, fault[2])
        elif not self.errors:
            seen.add(request["custom_id"])
            yield Line(number, request["custom_id"], request["body"], text)

    def _note(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        self.errors.append({"code": code, "message": message, "line": line, "param": param})


def _fault(request: Any, seen: set[str]) -> tuple[str, str, str | None] | None:
    """Code, message and field of what is wrong with a request, whatever its body asks for."""
    if not isinstance(request, dict):
        return "invalid_request", "an object is expected on each line", None
    custom_id = request.get("custom_id")
    fits = (
        isinstance(custom_id, str)
        and 0 < len(custom_id) <= MAX_CUSTOM_ID
        and not UNFIT.search(custom_id)
    )
    if not fits:
        what = f"custom_id is text of 1 to {MAX_CUSTOM_ID} characters"
        return "invalid_custom_id", what, "custom_id"
    if custom_id in seen:
        return "duplicate_custom_id", f"custom_id {custom_id[:80]!r} comes twice", "custom_id"
    if request.get("method", "POST") != "POST":
        return "invalid_method", "method is POST", "method"
    if request.get("url") != ENDPOINT:
        return "invalid_url", f"url is {ENDPOINT}, as the batch's endpoint", "url"
    if not isinstance(request.get("body"), dict):
        return "invalid_body", "body is an object", "body"
    return None


def chunks(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """So many at a time."""
    rows = iter(rows)
    while chunk := list(islice(rows, size)):
        yield chunk
