"""The server's parts, each alone."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from kinema.runtime.checkpoints.checkpoint import open_checkpoint
from kinema.runtime.errors import UsageError
from kinema.runtime.models.wan.presets import WAN
from kinema.runtime.serve import pictures, server
from kinema.runtime.serve.body import nest
from kinema.runtime.serve.errors import APIError
from kinema.runtime.serve.orders import Order, native_size, parts_of
from kinema.runtime.serve.store import Store
from kinema.runtime.serve.tables import Base


def test_migrations_make_the_tables_that_the_code_has(database_url):
    assert server.Video.metadata is Base.metadata  # a server has all tables
    store = Store(database_url)
    store.upgrade()
    store.upgrade()  # a second start finds nothing to do
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    store.close()


@pytest.mark.parametrize(
    ("pairs", "fields"),
    [
        ([("a", "1"), ("b[c]", "2"), ("b[d]", "3")], {"a": "1", "b": {"c": "2", "d": "3"}}),
        ([("a[]", "1"), ("a[]", "2")], {"a": ["1", "2"]}),
        (
            [("a[][x]", "1"), ("a[][y]", "2"), ("a[][x]", "3"), ("a[][y]", "4")],
            {"a": [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]},
        ),
        (  # as the official client sorts them
            [("a[][x]", "1"), ("a[][x]", "3"), ("a[][y]", "2"), ("a[][y]", "4")],
            {"a": [{"x": "1", "y": "2"}, {"x": "3", "y": "4"}]},
        ),
        ([("a[b][c]", "1")], {"a": {"b": {"c": "1"}}}),
    ],
)
def test_bracketed_names_are_nested(pairs, fields):
    assert nest(pairs) == fields


@pytest.mark.parametrize(
    "pairs",
    [
        [("a", "1"), ("a", "2")],
        [("a", "1"), ("a[b]", "2")],
        [("a[b", "1")],
        [("", "1")],
        [("a[]", "1"), ("a[b]", "2")],
        [("a[][x]", "1"), ("a[][x]", "3"), ("a[][y]", "2")],  # of the first, or of the second?
        [("a", "\x00")],
    ],
)
def test_names_that_do_not_fit_are_refused(pairs):
    with pytest.raises(APIError):
        nest(pairs)


def order(**fields) -> Order:
    return Order(**{"prompt": "a", "seed": 1, "width": 64, "height": 64, "seconds": 4, **fields})


class Shown:
    """A checkpoint of a model that takes a first frame."""

    index = {"_class_name": "none"}  # noqa: RUF012

    def __init__(self, **changes):
        from dataclasses import replace

        self.presets = replace(WAN, max_num_frames=81, **changes)


def test_a_length_beyond_the_models_own_is_made_in_parts():
    parts = parts_of(order(seconds=10), Shown(conditions="first"))  # 160 frames at 16 a second
    assert [part.overlap for part in parts] == [0, 1]
    assert all((part.num_frames - 1) % 4 == 0 and part.num_frames <= 81 for part in parts)
    assert 160 <= sum(part.num_frames - part.overlap for part in parts) < 164
    (only,) = parts_of(order(seconds=2, kind="extension"), Shown(conditions="control"))
    assert (only.overlap, only.num_frames) == (5, 37)


def test_a_model_of_text_alone_says_what_it_can():
    with pytest.raises(UsageError, match="4 works"):
        parts_of(order(seconds=8, fps=20), Shown(conditions="none"))


def test_sizes_are_native_or_the_nearest():
    assert native_size(720, 1280, WAN) == (720, 1280)
    assert native_size(4096, 2048, WAN) == (2048, 1024)
    assert native_size(720, 1280, open_checkpoint(None).presets) == (64, 64)


def test_what_was_fitted_can_be_taken_out_again():
    frames = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 3), np.uint8)
    frames = frames.repeat(8, 1).repeat(8, 2)
    fitted = pictures.fit(frames, 128, 256)
    assert fitted.shape == (2, 256, 128, 3) and not fitted[:, :64].any()
    back = pictures.cover(fitted[0], 64, 64).astype(int)
    assert np.abs(back - frames[0]).mean() < 8
    assert pictures.fit(frames, 64, 64) is frames
