"""What serving processes say of themselves: only those that are alive are heard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from resources.releases import ReleaseStore
from resources.serving_status import STALE, StatusFile, directory, host, statuses

SAID = {
    "revision": 3,
    "serving": [{"role": "champion", "release": "m:1", "version": "1", "weight": 100}],
    "refused": [{"release": "m:2", "reason": "GoldenMismatchError: ..."}],
}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return ReleaseStore(tmp_path).path("flights/late_arrival")


def write(record: Path, name: str, **other: Any) -> Path:
    now = datetime.now(UTC).isoformat()
    directory(record).mkdir(parents=True, exist_ok=True)
    path = directory(record) / f"{name}.json"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, **SAID, "at": now, **other}))
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_is_written_is_read(record: Path) -> None:
    """By whoever looks, with who said it and when; nothing is said of a model that nobody serves."""
    assert statuses(record) == []
    StatusFile(record).write(SAID)
    (status,) = statuses(record)
    assert (status.host, status.pid, status.revision) == (host(), os.getpid(), 3)
    assert [*status.serving] == SAID["serving"] and [*status.refused] == SAID["refused"]
    assert datetime.now(UTC) - status.at < timedelta(seconds=5)


def test_who_ended_is_not_heard(record: Path) -> None:
    """One that ended took its file away; one that was killed, here or elsewhere, is known by its pid or its age."""
    (mine := StatusFile(record)).write(SAID)
    mine.remove()
    write(record, "killed", host=host(), pid=dead_pid())
    write(record, "silent", at=(datetime.now(UTC) - STALE).isoformat())
    assert statuses(record) == []
    write(record, "elsewhere-7")
    assert [status.process for status in statuses(record)] == ["elsewhere-7"]


def test_what_killed_processes_left_is_swept(record: Path) -> None:
    """Of this host alone: of another's processes nobody here can tell."""
    killed = write(record, f"{host()}-{dead_pid()}", host=host(), pid=dead_pid())
    other = write(record, "elsewhere-7")
    (mine := StatusFile(record)).write(SAID)
    mine.sweep()
    assert not killed.exists() and other.exists()
    assert len(statuses(record)) == 2


def test_a_file_that_is_no_status_is_passed_over(record: Path) -> None:
    """Half a file, or one of another kind, must not hide the others."""
    write(record, "elsewhere-7")
    (directory(record) / "broken.json").write_text("{")
    (directory(record) / "other.json").write_text("[]")
    assert len(statuses(record)) == 1


def test_status_files_are_no_records(record: Path) -> None:
    """The store lists models, not what is said of them."""
    StatusFile(record).write(SAID)
    assert ReleaseStore(record.parents[1]).models() == []
