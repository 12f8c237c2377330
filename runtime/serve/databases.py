"""Databases by URL: how they are opened, held by one process, and what is said when they fail."""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import UsageError
from ..files import reason_of

# A failed statement is told without its values: prompts, and secrets of webhooks, are among them.
ALWAYS = {"pool_pre_ping": True, "hide_parameters": True}
BUSY_MS = 10_000  # how long a writer waits for another
POSTGRES = re.compile("^postgres(ql)?://")
# libpq waits for ever, unless told otherwise, for a host that does not answer.
WAITS = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # seconds; milliseconds
CLAIM = 0x6B696E656D61  # "kinema", as the number of an advisory lock
CLAIMING = (
    "SET lock_timeout = '5s'",  # one that was just killed lets go in a moment
    # One whose machine is gone lets go after a minute.
    "SET tcp_keepalives_idle = 30",
    "SET tcp_keepalives_interval = 10",
    "SET tcp_keepalives_count = 3",
    f"SELECT pg_advisory_lock({CLAIM})",
)


def open_engine(url: str) -> Engine:
    """The database of a URL; nothing is connected yet. Raises `UsageError`."""
    try:
        made = sqlalchemy.make_url(POSTGRES.sub("postgresql+psycopg://", url))
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        what = "the database URL cannot be read; postgresql://USER@HOST/NAME is expected"
        raise UsageError(what) from None
    if made.drivername == "sqlite":
        engine = sqlalchemy.create_engine(made, **ALWAYS)
        event.listen(engine, "connect", _set_up_sqlite)
        return engine
    if made.drivername != "postgresql+psycopg":
        begin = made.drivername[:40]
        raise UsageError(f"the database URL begins with {begin!r}; sqlite and postgresql work")
    waits = {name: value for name, value in WAITS.items() if name not in made.query}
    try:
        return sqlalchemy.create_engine(made, **ALWAYS, connect_args=waits)
    except ModuleNotFoundError as error:
        what = f"the database needs {error.name}: pip install 'kinema[postgres]'"
        raise UsageError(what) from None


class Claim:
    """Says whose a database is: a lock of PostgreSQL's, which ends with the connection it is on.

    SQLite has no such lock; there the data folder's is the only one.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self._lock = engine, threading.Lock()
        self._connection: Connection | None = None

    def hold(self) -> None:
        """Take the database for this process, or see that it still has it.

        Raises `UsageError` where another process has it, and what any query would.
        """
        if self.engine.dialect.name != "postgresql":
            return
        with self._lock:
            if self._connection is not None:
                with suppress(DBAPIError):
                    self._connection.exec_driver_sql("SELECT 1")
                    return
                self._let_go()
            self._take()

    def release(self) -> None:
        with self._lock:
            self._let_go()

    def _take(self) -> None:
        made = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self._connection = made
        try:
            for statement in CLAIMING:
                made.exec_driver_sql(statement)
        except DBAPIError as error:
            self._let_go()
            if getattr(error.orig, "sqlstate", None) == "55P03":  # the time for a lock is over
                raise UsageError("the database is served by another process") from None
            raise

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # never given to somebody else: what was set would stay
            connection.close()


def trouble_of(error: BaseException) -> str | None:
    """What keeps the database from answering, in a line; None for an error that would come again.

    A later try may go well: it was restarted, cannot be reached, or is too busy.
    """
    if isinstance(error, PoolTimeout):
        return "all its connections are in use"
    if isinstance(error, (OperationalError, InterfaceError)):
        return reason_of(error.orig or error)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return reason_of(error.orig or error)
    return None


def log_failure(log: logging.Logger, what: str, error: Exception) -> None:
    """Note that work failed: in a line where the database is why, else with where it came from."""
    trouble = str(error) if isinstance(error, UsageError) else trouble_of(error)
    if trouble is None:
        log.error("%s failed", what, exc_info=error)
    else:
        log.error("%s waits: %s", what, trouble)


def is_full(error: BaseException) -> bool:
    """Whether the database has no room left on its disk."""
    if not isinstance(error, OperationalError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    return state == "53100" or "disk is full" in str(error.orig)


def _set_up_sqlite(connection, _record) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.close()
