"""The prediction log: nothing lost but a last flush, nothing doubled, nothing waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import perf_counter, sleep, time
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

from mlops_assets.serving.answers import Answers, FrameInputs, Question, RowInputs
from mlops_assets.serving.plan import Fallback, Looked, microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.prediction_log import lines as prediction_lines
from mlops_assets.serving.prediction_log.lines import NEAR_BYTES
from mlops_assets.serving.prediction_log.writer import FLUSH_SECONDS, _beginning, _by_columns, _many
from mlops_assets.serving.wire.columns import ColumnInputs, Values
from resources.releases import Variant

MODEL = "flights/late_arrival"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
DAY = NOON.date()


WEATHER = "flights/weather"
CHAMPION = Variant("flights_late_arrival:abc", "7", 100)
NAMES = ("distance", "temp")


def answered(*ids: str, at: datetime = NOON, model: str = MODEL, temp: float | None = 50.5, **rest: Any) -> Answers:
    """What the champion said to a request of so many rows, looked up."""
    fallbacks = [] if temp is not None else [Fallback(WEATHER, {"origin": "EWR"}, "expired")]
    values = [[200.0, temp] for _ in ids]
    looked = [Looked(row, {WEATHER: microseconds(at - timedelta(hours=1))}, fallbacks) for row in values]
    question = Question(at, ids, {"origin": ["EWR"] * len(ids)}, asked=[{}] * len(ids))
    told = {"variant": CHAMPION, "looked": looked, "latency_ms": 1.5, **rest}
    return Answers(model, told.pop("variant"), question, NAMES, RowInputs(values), [0.25] * len(ids), **told)


COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "distance": ("Float64", [200.0, None, 1e-7]),
    "stops": ("Int64", [2**53 + 1, None, 0]),
    "tail": ("String", ['N"1}\n', None, "\u00e9\u2028"]),
    "wet": ("Bool", [True, None, False]),
    "place": ("Float64Array", [[0.5, 1.0], None, [0.1, -3.0]]),
}


def brought(kind: str, times: int = 100, **rest: Any) -> Answers:
    """What was said to many rows that brought their inputs, as each format gives them."""
    values = {name: column * times for name, (_, column) in COLUMNS.items()}
    rows = list(zip(*values.values(), strict=True))
    if kind == "frame":
        inputs: Any = FrameInputs(pl.DataFrame(values))
    elif kind == "columns":
        inputs = ColumnInputs([as_column(name, column) for name, column in values.items()])
    else:
        inputs = RowInputs(rows)
    ids = [f"id {place}" for place in range(len(rows))]
    question = Question(NOON, ids, {"origin": ["EWR", None, "JFK"] * times}, None, inputs)
    predictions = [0.25, 1 / 3, float("nan")] * times
    told = {"outputs": {"late": [True, False, None] * times}, "latency_ms": 1.5, **rest}
    return Answers(MODEL, CHAMPION, question, tuple(COLUMNS), inputs, predictions, **told)


def as_column(name: str, column: list[Any]) -> Values:
    dtype = COLUMNS[name][0]
    if dtype == "String":
        return Values(dtype, column)
    missing = np.array([value is None for value in column])
    if dtype == "Float64":
        return Values(dtype, np.array(column, dtype=np.float64))
    instead: Any = [0.0, 0.0] if dtype == "Float64Array" else 0
    return Values(dtype, np.array([instead if value is None else value for value in column]), missing)


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "predictions")


def written(log: PredictionLog, *some: Answers) -> PredictionLog:
    writer = log.writer()
    for answers in some:
        writer.write(answers)
    writer.close()
    return log


def test_an_answer_is_read_back_as_it_was_given(log: PredictionLog) -> None:
    """Times are UTC microseconds, keys and inputs are columns, the receipt keeps event times and fallbacks."""
    written(log, answered("UA1"), answered("UA2", at=NOON + timedelta(microseconds=5), temp=None))
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


@pytest.mark.parametrize("kind", ["rows", "columns", "frame"])
def test_many_rows_are_told_by_column_as_each_would_be(kind: str) -> None:
    """The same names and values, whatever the rows came as, and not one Python value at a time."""
    answers = brought(kind)
    slices = _by_columns(answers)
    assert slices is not None
    by_column = [orjson.loads(line + b"}") for some in slices for line in some]
    by_row = [orjson.loads(_beginning(row) + b"}") for row in _many(answers)]
    assert by_column == by_row
    assert len(by_row) == 300


def test_rows_without_keys_and_outputs_are_told_by_column_too(log: PredictionLog) -> None:
    answers = brought("rows")
    answers.question = replace(answers.question, keys={})
    answers.outputs = {}
    written(log, answers)
    frame = log.read(MODEL, DAY)
    assert frame["seq"].to_list() == list(range(300))
    assert frame["outputs"].unique().to_list() == ["{}"]


def test_whole_and_other_numbers_may_stand_in_one_column() -> None:
    answers = brought("rows", outputs={"minutes": [1, None, 2.5] * 100})
    lines = [orjson.loads(line + b"}")["outputs"]["minutes"] for some in _by_columns(answers) or [] for line in some]
    assert lines == [1, None, 2.5] * 100


def test_a_column_of_two_natures_is_told_row_by_row(log: PredictionLog) -> None:
    """Whatever a stage made, no answer is lost from the log for the shape of it."""
    answers = brought("rows", outputs={"note": ["a", 1, {"b": 2}] * 100})
    written(log, answers)
    notes = [json.loads(note)["note"] for note in log.read(MODEL, DAY)["outputs"]]
    assert notes == ["a", 1, {"b": 2}] * 100


def test_a_day_is_the_utc_day_asked_about(log: PredictionLog) -> None:
    """Rows belong to the day of `at`, whenever they were logged; a day without rows is an empty frame."""
    written(log, answered("late", at=NOON.replace(hour=23, minute=59)), answered("next", at=NOON + timedelta(days=1)))
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
    (path,) = log.files(MODEL, DAY)
    path.with_name("copy.jsonl").write_bytes(path.read_bytes())
    assert log.read(MODEL, DAY)["seq"].to_list() == [0, 1]


def test_a_half_written_last_line_is_passed_over(log: PredictionLog) -> None:
    """What a kill left of a line was never a record, and is no gap."""
    written(log, answered("a"), answered("b"))
    (path,) = log.files(MODEL, DAY)
    os.truncate(path, path.stat().st_size - 10)
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["a"]
    assert log.gaps(MODEL).lines == 0


def test_a_lost_line_is_named_by_writer_and_seq(log: PredictionLog) -> None:
    """A line that vanished from the middle is a gap that can be named."""
    written(log, *(answered(str(n)) for n in range(5)))
    (path,) = log.files(MODEL, DAY)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], *lines[3:]]))
    assert log.gaps(MODEL).missing == {f"{DAY}/{path.name}": [1, 2]}


def test_a_full_queue_drops_and_says_how_many(log: PredictionLog) -> None:
    """Answers beyond the bound are never waited for; a line says how many there were, and seq has no gap."""
    writer = log.writer(queue_rows=3)
    for n in range(10):
        writer.write(answered(str(n)))
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
writer.write(answered("before"))
wait_for(lambda: log.read(MODEL, DAY).height)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
writer.write(answered(*map(str, range(5))))
wait_for(lambda: writer._spools[MODEL, DAY.isoformat(), False].dropped)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write(answered("after"))
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
from test_prediction_log import DAY, MODEL, answered
from mlops_assets.serving.prediction_log import PredictionLog
log = PredictionLog(Path(sys.argv[1]))
writer = log.writer()
writer.write(answered(*map(str, range(100))))
while not log.read(MODEL, DAY).height: time.sleep(0.01)
writer.write(answered("lost"))
os.kill(os.getpid(), 9)
"""


def test_a_killed_writer_loses_at_most_its_last_flush(log: PredictionLog) -> None:
    """kill -9: everything flushed is there, gapless; only what was queued since is lost."""
    assert run(WRITE_AND_DIE, log) == -9
    assert log.read(MODEL, DAY)["seq"].to_list() == list(range(100))
    assert log.gaps(MODEL).lines == 0


WRITE_UNTIL_KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_prediction_log import answered
from mlops_assets.serving.prediction_log import PredictionLog
writer = PredictionLog(Path(sys.argv[1])).writer()
for number in range(10**9):
    writer.write(answered(str(time.time())))
    if number == 100: print("on its way", flush=True)
    time.sleep(0.0005)
"""


def test_a_kill_loses_what_was_answered_in_the_last_moments_only(log: PredictionLog) -> None:
    """kill -9 of a process that answers all the time: what is lost was answered within half a second of it."""
    script = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(log.root), str(Path(__file__).parent)]
    with subprocess.Popen(script, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        sleep(1)
        process.kill()
        killed = time()
    rows = log.read(MODEL, DAY)
    assert killed - float(rows["request_id"][-1]) < 0.5
    assert rows["seq"].to_list() == list(range(rows.height))
    assert log.gaps(MODEL).missing == {}


def test_writing_costs_an_answer_next_to_nothing(log: PredictionLog) -> None:
    """The request pays for an append (about 0.3 us here), whatever the thread has to do."""
    writer, answers = log.writer(), answered("a")
    began = perf_counter()
    for _ in range(10_000):
        writer.write(answers)
    spent = perf_counter() - began
    writer.close()
    assert spent / 10_000 < 20e-6
    assert log.read(MODEL, DAY).height == 10_000


def test_a_request_can_be_found_again(log: PredictionLog) -> None:
    """The receipt of one answer, by its id alone or with its model; a value that equals the id is no id."""
    written(log, answered("a"), answered("b", outputs={"note": ["a"]}), answered("b", model="flights/minutes_late"))
    (line,) = log.find("b", MODEL)
    assert line["inputs"] == {"distance": 200.0, "temp": 50.5}
    assert {line["model"] for line in log.find("b")} == {MODEL, "flights/minutes_late"} == set(log.models())
    assert len(log.find("a")) == 1
    assert log.find("c") == log.find('"', MODEL) == []


def test_rows_of_a_frame_are_logged_like_rows(log: PredictionLog) -> None:
    """A batch of a frame: each row with its own values, nulls as null, without anything looked up."""
    count = 1000
    frame = pl.DataFrame({"distance": map(float, range(count)), "temp": [None, *([1.5] * (count - 1))]})
    batch = answered(*map(str, range(count)), looked=None)
    batch.inputs = FrameInputs(frame)
    written(log, batch)
    rows = log.read(MODEL, DAY)
    assert rows["request_id"].to_list() == [*map(str, range(count))]
    assert rows.select(NAMES).equals(frame)
    assert set(rows["event_times"]) == {"{}"}
    assert set(rows["fallbacks"]) == {"[]"}


def test_what_post_processing_said_and_who_failed_is_logged(log: PredictionLog) -> None:
    """Outputs as JSON text, the challenger that the champion answered for by its name."""
    written(log, answered("a", "b", outputs={"late": [True, False]}, instead_of="flights_late_arrival:new"))
    rows = log.read(MODEL, DAY)
    assert [json.loads(text) for text in rows["outputs"]] == [{"late": True}, {"late": False}]
    assert set(rows["instead_of"]) == {"flights_late_arrival:new"}


def test_no_report_sees_what_a_shadow_said(log: PredictionLog) -> None:
    """A shadow's answers are read when they are asked for by name, and never with the others."""
    shadow = Variant("flights_late_arrival:dark", "8", 0, "shadow")
    written(log, answered("a"), answered("a", variant=shadow))
    for ask in (lambda **of: log.read(MODEL, DAY, **of), lambda **of: log.since(MODEL, NOON, **of)):
        assert ask()["release"].to_list() == [CHAMPION.release]
        assert ask(shadow=True)["release"].to_list() == [shadow.release]
    assert len(log.find("a")) == len(log.find("a", shadow=True)) == 1
    assert log.gaps(MODEL).missing == log.gaps(MODEL, shadow=True).missing == {}


def test_columns_read_by_their_types_are_those_found_out(log: PredictionLog) -> None:
    """One pass over the lines with the types known, or two without: the same rows, also where a type has changed."""
    types = {"origin": pl.String(), "distance": pl.Float64(), "temp": pl.Float64(), "never": pl.Int64()}
    written(log, answered("a"), answered("b", temp=None))
    told, found = log.read(MODEL, DAY, types), log.read(MODEL, DAY)
    assert told.drop("never").equals(found.select(told.drop("never").columns))
    assert told["never"].null_count() == 2
    once_text = answered("c")
    once_text.inputs = RowInputs([[200.0, "mild"]])
    written(log, once_text)
    assert log.read(MODEL, DAY, types)["request_id"].to_list() == ["a", "b", "c"]


def test_an_answer_that_cannot_be_written_costs_no_other(log: PredictionLog) -> None:
    """A value that JSON has no word for is counted as dropped, and said so."""
    odd = answered("odd")
    odd.inputs = RowInputs([[200.0, object()]])
    written(log, answered("a"), odd, answered("b"))
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["a", "b"]
    assert log.gaps(MODEL, DAY).dropped == 1
    assert log.gaps(MODEL, DAY).missing == {}


def test_answers_that_are_not_whole_end_nothing(log: PredictionLog) -> None:
    """More names than values is a fault of the program: it is said, counted, and what comes after is logged."""
    broken = answered("broken")
    broken.inputs = RowInputs([[200.0]])
    writer = log.writer()
    writer.write(broken)
    sleep(3 * FLUSH_SECONDS)
    writer.write(answered("after"))
    writer.close()
    assert log.read(MODEL, DAY)["request_id"].to_list() == ["after"]
    assert log.gaps(MODEL, DAY).dropped == 1
    assert log.gaps(MODEL, DAY).missing == {}


def test_a_log_put_away_reads_as_before(log: PredictionLog) -> None:
    """Compressed, with its shadow's: the same rows, gaps and finds, and one that is still written to stays open."""
    shadow = Variant("flights_late_arrival:dark", "8", 0, "shadow")
    written(log, answered(*map(str, range(300))), answered("dark", variant=shadow))
    old, moment = log.read(MODEL, DAY), datetime.now(UTC)
    lines = log.find("17")
    hour_ago = (moment - timedelta(hours=1)).timestamp()
    size = sum(path.stat().st_size for path in log.files(MODEL))
    for path in [*log.files(MODEL), *log.files(MODEL, shadow=True)]:
        os.utime(path, (hour_ago, hour_ago))
    written(log, answered("now"))
    assert log.put_away(MODEL, moment - timedelta(minutes=1)) == 2
    assert log.put_away(MODEL, moment - timedelta(minutes=1)) == 0
    assert log.read(MODEL, DAY).filter(pl.col("request_id") != "now").equals(old)
    assert log.gaps(MODEL).missing == {}
    assert log.find("17") == lines
    assert len(log.find("dark", shadow=True)) == len(log.find("now")) == 1
    assert log.since(MODEL, moment)["request_id"].to_list() == ["now"]
    assert sorted(path.suffix for path in log.files(MODEL)) == [".gz", ".jsonl"]
    assert sum(path.stat().st_size for path in log.files(MODEL)) < size / 5


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


def test_only_the_end_of_a_long_file_is_read_for_what_is_new(log: PredictionLog) -> None:
    """Lines of a minute ago and older are passed over by a few seeks, and none of the newer ones is."""
    (path,) = written(log, answered(*map(str, range(2000)))).files(MODEL)
    now, lines = datetime.now(UTC), path.read_bytes().splitlines()
    hour_ago = orjson.dumps(now - timedelta(hours=1))
    old = [line.replace(orjson.dumps(orjson.loads(line)["logged_at"]), hour_ago) for line in lines[:1500]]
    path.write_bytes(b"\n".join([*old, *lines[1500:]]) + b"\n")
    since = now - timedelta(minutes=1)
    assert log.since(MODEL, since)["seq"].to_list() == list(range(1500, 2000))
    assert path.stat().st_size > 4 * NEAR_BYTES
    assert prediction_lines.start_of(path, since.timestamp()) > 0
