"""No answer is lost on the way from the log to the table without a check that says so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE, Popen, run
from time import sleep, time
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from mlops_assets.links.predictions import columns, logged, publish
from mlops_assets.links.spec import link_key
from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.prediction_log import lines as prediction_lines
from resources.lake import Lake
from resources.lake_writer import row_groups
from sensors.late_answers import SAME_SECONDS

if TYPE_CHECKING:
    from conftest import Platform

DAY, TABLE = "2013-07-01", "flights/late_arrival/predictions"
NOON = datetime(2013, 7, 1, 12, tzinfo=UTC)


def answers(platform: Platform, *numbers: int, without: tuple[str, ...] = (), at: datetime = NOON) -> Answers:
    """What the champion said to a request about some flights, with its inputs (all but those `without`)."""
    champion = platform.published["release"].champion
    inputs = [name for name in platform.model.inputs if name not in without]
    texts = ("carrier", "aircraft_manufacturer")
    keys = {"origin": "EWR", "dest": "SFO", "carrier": "UA", "tailnum": "N1"}
    question = Question(
        at, [f"flight {n}" for n in numbers], {name: [key] * len(numbers) for name, key in keys.items()}
    )
    values = [["UA" if name in texts else float(n) for name in inputs] for n in numbers]
    return Answers(platform.model.id, champion, question, inputs, RowInputs(values), [n / 100 for n in numbers])


def write(*some: Answers) -> Path:
    """One writer's file with the answers."""
    writer = PredictionLog().writer()
    for given in some:
        writer.write(given)
    writer.close()
    files = PredictionLog().files(some[0].model, NOON.date())
    return max(files, key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def table(platform: Platform) -> Iterator[Any]:
    """Materialize the day's predictions; gives the run and the published rows."""

    def materialize() -> tuple[Any, pl.DataFrame]:
        ran = platform.run("predictions", partition=DAY)
        assert ran.ok, ran.trouble
        return ran, platform.resources["lake"].scan(TABLE, [DAY]).collect()

    return materialize


def test_every_answer_is_a_row_with_the_features_as_used(platform: Platform, table: Any) -> None:
    """By its id, with the declared columns and types, whatever order it was written in; again, it is the same table."""
    write(answers(platform, *range(20)))
    ran, rows = table()
    assert ran.checks["no_gap"].passed and rows["request_id"].to_list() == [f"flight {n}" for n in range(20)]
    assert rows["distance"].to_list() == [float(n) for n in range(20)]
    assert dict(rows.schema) == {name: field.polars for name, field in columns(platform.model).items()}
    assert table()[1].equals(rows)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: [*lines[:3], lines[3][:40] + b"\x00\x00", *lines[4:]],
        lambda lines: [*lines[:3], *lines[4:]],
    ],
    ids=["a line that is half zeros", "a line that is gone"],
)
def test_a_spoilt_line_is_named_and_costs_no_other(spoil: Any, platform: Platform, table: Any) -> None:
    """The check fails as a warning with the writer and the number of what is missing; the other answers are there."""
    path = write(answers(platform, *range(10)))
    path.write_bytes(b"\n".join(spoil(path.read_bytes().splitlines())) + b"\n")
    ran, rows = table()
    assert ran.failed == {"no_gap"} and rows.height == 9 and "flight 3" not in rows["request_id"]
    assert f"1 answers are missing from the log {{'{DAY}/{path.name}': [3]}}" in ran.checks["no_gap"].description


def test_a_day_without_answers_is_an_empty_table_and_no_verdict(platform: Platform, table: Any) -> None:
    """Its columns are those of any day; the reports over it say that there is nothing to judge, and pass."""
    ran, rows = table()
    assert rows.height == 0 and list(rows.columns) == list(columns(platform.model)) and not ran.failed
    reports = platform.run("quality_report", "drift_report", "performance_report", partition=DAY)
    assert reports.ok and not reports.failed
    assert {facts["verdict"] for facts in reports.facts.values()} == {"not enough rows"}


def test_answers_of_an_older_declaration_keep_their_place(platform: Platform) -> None:
    """A feature that was declared since is null in them."""
    write(answers(platform, *range(3), without=("temp",)))
    rows = logged(platform.model, PredictionLog().read(platform.model.id, NOON.date()))
    assert rows.height == 3 and rows["temp"].null_count() == 3 and rows["dewp"].null_count() == 0


def test_a_feature_declared_since_does_not_stop_the_drift_report(platform: Platform) -> None:
    """The release that answers was trained without it: the others are compared, and the day has its report."""
    fewer = [item for item in platform.model.selections if item.view.name != "aircraft_use"]
    old = platform.declared(features=fewer)
    assert old.run("training_set", "candidate", partition="2013-07-01").ok
    old.promotion.promote(old.model, "2", by="ann", why="without aircraft")
    gone = tuple(set(platform.model.inputs) - set(old.model.inputs))
    write(answers(platform, *range(20), without=gone))
    ran = platform.run("predictions", "drift_report", partition=DAY)
    assert ran.ok, ran.trouble
    assert "aircraft_age" not in ran.facts["drift_report"]["columns"] and "temp" in ran.facts["drift_report"]["columns"]


ANSWER_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from datetime import UTC, datetime
from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.prediction_log import PredictionLog
from resources.releases import Variant
name, keys = sys.argv[1], {name: ["X"] for name in ("origin", "dest", "carrier", "tailnum")}
writer, champion = PredictionLog().writer(), Variant("flights_late_arrival:a", "1", 100)
for number in range(int(sys.argv[2])):
    question = Question(datetime(2013, 7, 1, 12, tzinfo=UTC), [f"{name} {number}"], keys)
    writer.write(Answers("flights/late_arrival", champion, question, ("temp",), RowInputs([[1.5]]), [0.5]))
    if number == 500: print("on its way", flush=True)
    time.sleep(0.0005)
writer.close()
"""


def test_writers_a_kill_and_a_restart_leave_no_gap_and_no_double(platform: Platform, table: Any) -> None:
    """Two processes write, one is killed and starts again: all that is in the log is in the table, once."""
    script = [sys.executable, "-c", ANSWER_UNTIL_KILLED]
    with Popen([*script, "killed", "1000000"], stdout=PIPE) as killed, Popen([*script, "whole", "1200"]) as whole:
        assert killed.stdout is not None
        assert killed.stdout.readline()
        sleep(0.5)
        killed.kill()
        assert whole.wait() == 0
    run([*script, "again", "300"], check=True)
    ran, rows = table()
    counts = dict(rows["request_id"].str.split(" ").list.first().value_counts().iter_rows())
    assert ran.checks["no_gap"].passed
    assert counts["whole"] == 1200
    assert counts["again"] == 300
    assert counts["killed"] > 250
    assert rows["request_id"].n_unique() == rows.height
    killed_rows = rows.filter(pl.col("request_id").str.starts_with("killed"))["seq"].to_list()
    assert killed_rows == list(range(len(killed_rows))), "in order, and nothing but the end is lost"


def test_late_lines_come_with_the_next_materialization_and_nothing_goes(platform: Platform, table: Any) -> None:
    """A slow worker's lines join the table; what was put away from the log, or copied in it, changes nothing."""
    early = write(answers(platform, *range(5)))
    _, before = table()
    write(answers(platform, 5, 6))
    early.with_name("copy.jsonl").write_bytes(early.read_bytes())
    _, after = table()
    assert after["request_id"].to_list() == [f"flight {n}" for n in range(7)]
    for path in PredictionLog().files(platform.model.id):
        path.unlink()
    _, gone = table()
    assert gone.equals(after)
    assert after.head(before.height).equals(before)


def test_a_day_of_many_rows_is_published_in_pieces(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """By chunk of the log a row group, and the same version and rows as in one piece."""
    lake, log, key = platform.resources["lake"], PredictionLog(), platform.model
    write(answers(platform, *range(1000)), answers(platform, *range(1000, 2000)))
    whole = publish(key, lake, log, DAY)
    rows = lake.scan(TABLE, [DAY]).collect()
    monkeypatch.setattr(prediction_lines, "CHUNK_BYTES", 100_000)
    assert publish(key, lake, log, DAY).value == whole.value
    assert lake.scan(TABLE, [DAY]).collect().equals(rows)
    assert pq.ParquetFile(lake.path(TABLE, DAY)).num_row_groups > 5
    assert rows["request_id"].to_list() == [f"flight {n}" for n in range(2000)]


def test_a_publication_that_breaks_off_leaves_the_old_table(tmp_path: Path) -> None:
    """Readers see the rows of before, and nothing lies beside them."""
    lake, schema = Lake(root=str(tmp_path)), pl.Schema({"x": pl.String()})
    with row_groups(lake, "a/b", "p", schema) as table:
        table.add(pl.DataFrame({"x": ["old"]}))
    with pytest.raises(RuntimeError, match="half way"), row_groups(lake, "a/b", "p", schema) as table:
        table.add(pl.DataFrame({"x": ["new"]}))
        raise RuntimeError("half way")
    assert lake.scan("a/b").collect()["x"].to_list() == ["old"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["p.parquet"]


def test_a_day_is_asked_for_again_when_answers_come_late(platform: Platform, table: Any) -> None:
    """Once for each time that its log grew and was left alone since; a day never published is nobody's business."""
    path = write(answers(platform, 1))
    assert platform.tick("late_answers").skip_reason is not None
    table()
    later = time() + 10 * SAME_SECONDS
    write(answers(platform, 2))
    os.utime(path, (later, later))
    assert not platform.tick("late_answers").run_requests, "it may still be written to"
    published = platform.resources["lake"].path(TABLE, DAY)
    long_ago, since = time() - 20 * SAME_SECONDS, time() - 10 * SAME_SECONDS
    os.utime(published, (long_ago, long_ago))
    for file in PredictionLog().files(platform.model.id):
        os.utime(file, (since, since))
    requests = [request for _ in range(2) for request in platform.tick("late_answers").run_requests]
    assert {request.partition_key for request in requests} == {DAY}
    assert len({request.run_key for request in requests}) == 1, "Dagster runs it once"
    assert requests[0].asset_selection == [link_key(platform.model, "predictions")]
    table()
    assert not platform.tick("late_answers").run_requests
