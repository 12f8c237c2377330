"""A log of JSON lines, each with the id of the request it belongs to.

No header, query, body or prompt is logged. What looks like a secret in others' messages and in
tracebacks is left out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from contextvars import ContextVar
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
# Credentials in a URL; what follows `Bearer`; signing secrets of webhooks; keys of `keys.new_key`.
SECRETS = re.compile(
    r"(?<=://)[^/@\s'\"]+(?=@)|(?<=[Bb]earer )[^\s,;'\"]+|whsec_[\w+/=-]+|kinema-[\w-]{43}(?![\w-])"
)


def hide(text: str) -> str:
    """A text without what looks like a secret."""
    return SECRETS.sub("***", text)


class AsJson(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hide(record.getMessage()),
            "request_id": request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = hide(self.formatException(record.exc_info))
        return json.dumps({name: value for name, value in line.items() if value is not None})


def log_to_stderr(level: int = logging.INFO) -> None:
    """Log what the server and uvicorn say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(AsJson())
    for name, least in (("kinema", logging.WARNING), ("uvicorn", level)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(least)
    logging.getLogger("kinema.serve").setLevel(level)
    logging.getLogger("uvicorn.access").disabled = True
