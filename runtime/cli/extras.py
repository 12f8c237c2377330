"""A package that is missing, told with the extra that brings it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UsageError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Around imports of `what`. Raises `UsageError` for a package of others that is not there."""
    try:
        yield
    except ImportError as error:
        if (error.name or "kinema").startswith("kinema"):
            raise
        raise UsageError(f"{what} needs {error.name}: pip install 'kinema[{extra}]'") from None
