"""The database: SQLite in the data folder, or any that SQLAlchemy opens by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from ..errors import KinemaError
from ..files import reason_of

MIGRATIONS = Path(__file__).with_name("migrations")
BUSY_MS = 10_000  # how long a writer waits for another


class Store:
    """Sessions on one database, from any thread.

    SQLite keeps a write-ahead log and syncs it at each commit: what was committed survives a kill
    and a power cut. Raises `KinemaError` for a database that cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            self.engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
        except (sqlalchemy.exc.ArgumentError, ImportError) as error:
            raise KinemaError(f"cannot open the database: {reason_of(error)}") from None
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _set_up_sqlite)
        self._session = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed at the end, undone if the body fails."""
        with self._session.begin() as session:
            yield session

    def upgrade(self) -> None:
        """Bring the tables to this version's, whatever version made them."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            with self.engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except sqlalchemy.exc.OperationalError as error:
            raise KinemaError(f"cannot open the database: {reason_of(error.orig)}") from None

    def ping(self) -> None:
        """Raises what a query would."""
        with self.engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def _set_up_sqlite(connection, _record) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    cursor.close()
