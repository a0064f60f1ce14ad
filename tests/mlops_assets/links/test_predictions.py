"""No answer is lost on the way from the log to the table without a check that says so."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from mlops_assets.links.predictions import columns, logged
from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.prediction_log import PredictionLog

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
    reports = platform.run("drift_report", "performance_report", partition=DAY)
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
