"""Files appear whole or not at all; what can be made again is kept where there is room for it."""

from __future__ import annotations

import pytest

from kinema.runtime.errors import KinemaError
from kinema.runtime.files import cache_folder, whole_or_nothing, write_cache


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_or_nothing(path) as unfinished:
        unfinished.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "none" / "a.txt"
    with (
        pytest.raises(KinemaError, match=r"none/a\.txt': no such file or directory"),
        whole_or_nothing(path) as unfinished,
    ):
        unfinished.write_text("whole")


def test_a_cache_is_written_or_done_without(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_cache("a.json", "1")
    write_cache("a.json", "2")
    assert (cache_folder() / "a.json").read_text() == "2"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write_cache("a.json", "3")
    assert not cache_folder().exists()
