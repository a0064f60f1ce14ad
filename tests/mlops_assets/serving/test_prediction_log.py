"""The prediction log: nothing lost but a last flush, nothing doubled, nothing waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from mlops_assets.serving.plan import Fallback, Looked, microseconds
from mlops_assets.serving.prediction_log import Answered, PredictionLog

MODEL = "flights/late_arrival"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
DAY = NOON.date()


def answered(request_id: str, at: datetime = NOON, model: str = MODEL, temp: float | None = 50.5) -> Answered:
    fallbacks = [] if temp is not None else [Fallback("flights/weather", {"origin": "EWR"}, "expired")]
    looked = Looked([200.0, temp], {"flights/weather": microseconds(at - timedelta(hours=1))}, fallbacks)
    return Answered(
        model, request_id, at, "flights_late_arrival:abc", "7", "champion", {"origin": "EWR"}, ("distance", "temp"),
        looked, 0.25, 1.5,
    )  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "predictions")


def written(log: PredictionLog, *rows: Answered) -> PredictionLog:
    writer = log.writer()
    for row in rows:
        writer.write([row])
    writer.close()
    return log


def test_an_answer_is_read_back_as_it_was_given(log: PredictionLog) -> None:
    """Times are UTC microseconds, keys and inputs are columns, the receipt keeps event times and fallbacks."""
    written(log, answered("UA1"), answered("UA2", NOON + timedelta(microseconds=5), temp=None))
    frame = log.read(MODEL, DAY)
    first, second = frame.iter_rows(named=True)
    assert first["at"] == NOON
    assert first | {
        "request_id": "UA1", "release": "flights_late_arrival:abc", "version": "7", "variant": "champion",
        "prediction": 0.25, "latency_ms": 1.5, "seq": 0,
    } == first  # fmt: skip
    assert (first["origin"], first["distance"], first["temp"], second["temp"]) == ("EWR", 200.0, 50.5, None)
    assert json.loads(first["event_times"]) == {"flights/weather": "2013-04-01T11:00:00+00:00"}
    assert json.loads(second["fallbacks"]) == [
        {"view": "flights/weather", "keys": {"origin": "EWR"}, "reason": "expired", "used": "nulls"}
    ]
    assert str(frame.schema["at"]) == "Datetime(time_unit='us', time_zone='UTC')"


def test_a_day_is_the_utc_day_asked_about(log: PredictionLog) -> None:
    """Rows belong to the day of `at`, whenever they were logged; a day without rows is an empty frame."""
    written(log, answered("late", NOON.replace(hour=23, minute=59)), answered("next", NOON + timedelta(days=1)))
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["late"]
    assert log.days(MODEL) == [DAY, date(2013, 4, 2)]
    empty = log.read(MODEL, date(2013, 5, 1))
    assert empty.is_empty()
    assert {"request_id", "at", "prediction"} <= set(empty.columns)


def test_writers_count_on_their_own_and_models_are_apart(log: PredictionLog) -> None:
    """Two writers of two models: each file counts from 0 without a gap."""
    written(log, answered("a"), answered("b"), answered("other", model="flights/minutes_late"))
    written(log, answered("c"))
    assert sorted(log.read(MODEL, DAY)["request_id"]) == ["a", "b", "c"]
    assert log.read("flights/minutes_late", DAY)["request_id"].to_list() == ["other"]
    assert log.gaps(MODEL).missing == {}


def test_a_copied_file_doubles_nothing(log: PredictionLog) -> None:
    """The same line found twice (a restored spool) is one answer; a repeated request id is two."""
    written(log, answered("a"), answered("a"))
    (path,) = (log.root / MODEL).glob("*.jsonl")  # type: ignore[operator]
    path.with_name("copy.jsonl").write_bytes(path.read_bytes())
    assert log.read(MODEL, DAY)["seq"].to_list() == [0, 1]


def test_a_half_written_last_line_is_passed_over(log: PredictionLog) -> None:
    """What a kill left of a line was never a record, and is no gap."""
    written(log, answered("a"), answered("b"))
    (path,) = (log.root / MODEL).glob("*.jsonl")  # type: ignore[operator]
    os.truncate(path, path.stat().st_size - 10)
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["a"]
    assert log.gaps(MODEL).lines == 0


def test_a_lost_line_is_named_by_writer_and_seq(log: PredictionLog) -> None:
    """A line that vanished from the middle is a gap that can be named."""
    written(log, *(answered(str(n)) for n in range(5)))
    (path,) = (log.root / MODEL).glob("*.jsonl")  # type: ignore[operator]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[3:]]))
    assert log.gaps(MODEL).missing == {path.stem: [1, 2]}


def test_a_full_queue_drops_and_says_how_many(log: PredictionLog) -> None:
    """Rows beyond the bound are never waited for; the next line carries their number, and seq has no gap."""
    writer = log.writer(queue_rows=3)
    writer.write([answered(str(n)) for n in range(10)])
    writer.close()
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["0", "1", "2"]
    assert log.gaps(MODEL).dropped == 7
    assert log.gaps(MODEL).missing == {}


FILL_THE_DISK = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_prediction_log import DAY, MODEL, answered
from mlops_assets.serving.prediction_log import PredictionLog
def wait_for(condition):
    while not condition(): time.sleep(0.01)
log = PredictionLog(Path(sys.argv[1]))
writer = log.writer()
writer.write([answered("before")])
wait_for(lambda: log.read(MODEL, DAY).height)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
writer.write([answered(str(n)) for n in range(5)])
wait_for(lambda: writer._spools[MODEL].dropped)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write([answered("after")])
writer.close()
"""


def run(script: str, log: PredictionLog) -> int:
    return subprocess.run(
        [sys.executable, "-c", script, str(log.root), str(Path(__file__).parent)], check=False
    ).returncode


def test_a_full_disk_ends_nothing(log: PredictionLog) -> None:
    """A write cut off in the middle of a line leaves no trace but a count; what comes after is logged, gapless."""
    assert run(FILL_THE_DISK, log) == 0
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["before", "after"]
    assert log.gaps(MODEL).dropped == 5
    assert log.gaps(MODEL).missing == {}


WRITE_AND_DIE = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_prediction_log import MODEL, answered
from mlops_assets.serving.prediction_log import PredictionLog
log = PredictionLog(Path(sys.argv[1]))
writer = log.writer()
writer.write([answered(str(n)) for n in range(100)])
while not log.read(MODEL, answered("x").at.date()).height: time.sleep(0.01)
writer.write([answered("lost")])
os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_loses_at_most_its_last_flush(log: PredictionLog) -> None:
    """kill -9: everything flushed is there, gapless; only what was queued since is lost."""
    assert run(WRITE_AND_DIE, log) == -9
    assert log.read(MODEL, DAY)["seq"].to_list() == list(range(100))
    assert log.gaps(MODEL).lines == 0


def test_a_request_can_be_found_again(log: PredictionLog) -> None:
    """The receipt of one answer, by its id."""
    written(log, answered("a"), answered("b"))
    (line,) = log.find("b", MODEL)
    assert line["inputs"] == {"distance": 200.0, "temp": 50.5}


def test_what_was_written_since_a_moment_needs_no_older_file(log: PredictionLog, tmp_path: Path) -> None:
    """The rollout asks every half minute: a file that nobody wrote to since is not opened, and no answer is missed."""
    written(log, answered("old"))
    (old,) = (tmp_path / "predictions").rglob("*.jsonl")
    moment = datetime.now(UTC)
    written(log, answered("new"))
    assert log.since(MODEL, moment)["request_id"].to_list() == ["new"]
    hour_ago = (moment - timedelta(hours=1)).timestamp()
    old.write_bytes(b"[]\n")  # no answer: who reads it fails
    os.utime(old, (hour_ago, hour_ago))
    assert log.since(MODEL, moment)["request_id"].to_list() == ["new"]
