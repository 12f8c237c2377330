"""The database: SQLite in the data folder, or PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from ..errors import KinemaError
from ..files import reason_of
from .databases import Claim, open_engine

MIGRATIONS = Path(__file__).with_name("migrations")


class Store:
    """Sessions on one database, from any thread.

    What was committed survives a kill and a power cut: SQLite keeps a write-ahead log and syncs it
    at each commit, PostgreSQL does as it is set up. Raises `UsageError` for a URL that names no
    database that it knows.
    """

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self.claim = Claim(self.engine)
        self._session = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction: committed at the end, undone if the body fails."""
        with self._session.begin() as session:
            yield session

    def upgrade(self) -> None:
        """Take the database for this process, and bring its tables to this version's.

        Raises `UsageError` for one that another process serves, `KinemaError` for one that cannot
        be opened.
        """
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        try:
            self.claim.hold()
            with self.engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except DBAPIError as error:
            self.close()
            raise KinemaError(
                f"cannot open the database: {reason_of(error.orig or error)}"
            ) from None
        except CommandError as error:  # tables of a later version
            self.close()
            raise KinemaError(f"cannot use the database: {reason_of(error)}") from None

    def ping(self) -> None:
        """Raises what a query would, and `UsageError` once another process has the database."""
        self.claim.hold()
        with self.engine.connect() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))

    def close(self) -> None:
        self.claim.release()
        self.engine.dispose()
