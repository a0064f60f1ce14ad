"""A file is there whole or not at all, and what killed writers leave does not pile up."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from resources.beside import FORGOTTEN_SECONDS, beside


def hidden(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith(".")]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    """While it is written the old one stands, and nothing is left beside it afterwards."""
    path = tmp_path / "a.parquet"
    path.write_text("old")
    with beside(path) as place:
        place.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and not hidden(tmp_path)


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    """Also nothing, where nothing was."""
    with pytest.raises(ValueError, match="broken"), beside(tmp_path / "a") as place:
        place.write_text("half")
        raise ValueError("broken")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_goes_a_day_later_and_a_writer_at_work_keeps_its_place(tmp_path):
    """Only that of the same file, and only the forgotten one; brackets in a name are no pattern."""
    path = tmp_path / "[a].parquet"
    begun = [(path.name, 1), (path.name, 2), ("b", 1)]
    forgotten, at_work, other = (tmp_path / f".{name}.{number}.tmp" for name, number in begun)
    for left in (forgotten, at_work, other):
        left.write_text("half")
    for old in (forgotten, other):
        os.utime(old, (time.time() - FORGOTTEN_SECONDS - 60,) * 2)
    with beside(path) as place:
        place.write_text("whole")
    assert sorted(hidden(tmp_path)) == sorted([at_work.name, other.name])
