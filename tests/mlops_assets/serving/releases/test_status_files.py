"""What a process says of itself is kept true, and costs nothing where nobody can write it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from mlops_assets.serving.releases import Served, status_files
from mlops_assets.serving.releases.status_files import StatusFiles
from resources.releases import ReleaseStore
from resources.serving_status import directory, statuses

MODEL = "flights/late_arrival"


def test_it_is_written_when_it_changes_and_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every look, or hundreds of models would keep the disk busy; often enough to be known alive."""
    records = ReleaseStore(tmp_path)
    files, served = StatusFiles(records.path), Served(MODEL)
    files.tell([served])
    (first,) = statuses(records.path(MODEL))
    files.tell([served])
    assert statuses(records.path(MODEL)) == [first]
    files.tell([changed := Served(MODEL, refused={"m:2": "broken"})])
    (second,) = statuses(records.path(MODEL))
    assert [dict(one) for one in second.refused] == [{"release": "m:2", "reason": "broken"}]
    monkeypatch.setattr(status_files, "AGAIN_SECONDS", 0.0)
    time.sleep(0.002)  # the time is told in milliseconds
    files.tell([changed])
    assert statuses(records.path(MODEL))[0].at > second.at
    files.close()
    assert statuses(records.path(MODEL)) == []


def test_a_place_where_nothing_can_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Answering goes on; the log is not filled with it."""
    records = ReleaseStore(tmp_path)
    directory(records.path(MODEL)).parent.mkdir(parents=True)
    directory(records.path(MODEL)).write_text("a file where the directory should be")
    files = StatusFiles(records.path)
    with caplog.at_level(logging.WARNING):
        for number in range(5):
            files.tell([Served(MODEL, refused={"m:2": str(number)})])
        files.close()
    assert len([line for line in caplog.messages if "nobody can read what this process serves" in line]) == 1
