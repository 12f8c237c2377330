"""What tables have in common; each resource declares its own on `Base`."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from sqlalchemy import Select
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Session


class Base(DeclarativeBase):
    """All tables of the server."""


def page_of(
    session: Session,
    rows: Select[Any],
    number: InstrumentedAttribute[Any],
    after: int | None,
    limit: int,
    newest_first: bool = True,
) -> tuple[list[Any], bool]:
    """At most `limit` of the rows, in the order of a column that counts them, and whether there
    are more. `after`: the number that comes before the first of them."""
    if after is not None:
        rows = rows.where(number < after if newest_first else number > after)
    rows = rows.order_by(number.desc() if newest_first else number)
    found = list(session.scalars(rows.limit(limit + 1)))
    return found[:limit], len(found) > limit


def new_id(kind: str) -> str:
    """A name that nobody guesses, such as video_0f3c..."""
    return f"{kind}_{uuid4().hex}"


def now() -> int:
    """Seconds since 1970, as the API tells times."""
    return int(time.time())
