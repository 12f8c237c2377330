"""What the pytest-benchmark suites share: `pytest benchmarks/ --benchmark-only`."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_keys(tmp_path_factory):
    """Files are signed with an identity of the benchmarks' own, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield
