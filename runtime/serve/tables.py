"""What tables have in common; each resource declares its own on `Base`."""

from __future__ import annotations

import time
from uuid import uuid4

from sqlalchemy.orm import DeclarativeBase


class Base(DeclarativeBase):
    """All tables of the server."""


def new_id(kind: str) -> str:
    """A name that nobody guesses, such as video_0f3c..."""
    return f"{kind}_{uuid4().hex}"


def now() -> int:
    """Seconds since 1970, as the API tells times."""
    return int(time.time())
