"""Each benchmark at toy size: it shows its sides to be equal, and measures both."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from subprocess import CalledProcessError

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from benchmarks import definitions_load, event_log, offline_store, online_store, orchestration_overhead, training_set
from mlops_assets.catalog import gather
from mlops_assets.links.training_set import point_in_time_rows
from resources.point_in_time import point_in_time_join

DAYS = (date(2013, 1, 1), date(2013, 1, 8))


def test_a_process_is_timed_whole_or_by_its_own_clock():
    """Starting and ending Python takes longer than any code that does nothing."""
    assert definitions_load.whole("pass")() > definitions_load.alone("pass")() > 0


def test_a_process_that_fails_is_not_timed():
    with pytest.raises(CalledProcessError, match="returned non-zero exit status 1"):
        definitions_load.whole("import nothing_of_this_name")()


def test_the_hand_written_chain_gives_the_training_set(home: Path):
    """A week of flights, in memory and through the lake: the same rows, both sides timed."""
    measured = training_set.measure(rounds=1, days=DAYS)
    assert [figure.name for figure in measured.figures] == ["training_set.in_memory", "training_set.from_the_lake"]
    assert all(figure.ours > 0 and figure.peer > 0 and figure.target == 2.0 for figure in measured.figures)
    assert not home.exists()


def test_a_chain_that_differs_is_noticed(monkeypatch: pytest.MonkeyPatch):
    """Tables that differ in one value are never timed against each other."""
    model = gather().model(training_set.MODEL)
    held = training_set.frames(model, DAYS)
    rows = point_in_time_rows(model, held["spine"], held)
    assert_frame_equal(rows, training_set.bare_rows(model, held))
    monkeypatch.setattr(training_set, "bare_rows", lambda *_: rows.with_columns(temp=pl.col("temp") + 1e-9))
    with pytest.raises(AssertionError, match="temp"):
        training_set.figure("training_set", model, held, rounds=1)


def test_both_event_logs_record_the_same_run(home: Path):
    """A day of tables: the same events and partitions, both sides timed, nothing left in the user's home."""
    (measured,) = event_log.measure(rounds=1, days=(date(2013, 1, 1),) * 2).figures
    assert measured.name == "event_log"
    assert measured.ours > 0
    assert measured.peer > 0
    assert not home.exists()


def test_only_the_event_log_differs():
    with event_log.instance(event_log.configuration()) as ours:
        assert type(ours.event_log_storage).__name__ == "PooledSqliteEventLog"
    settings = {name: value for name, value in event_log.configuration().items() if name != event_log.SETTING}
    with event_log.instance(settings) as default:
        assert type(default.event_log_storage).__name__ == "SqliteEventLogStorage"


def test_a_demo_that_breaks_off_gives_no_figures(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its last words are told."""
    monkeypatch.setenv("MLOPS_ENV", "nowhere")
    with pytest.raises(orchestration_overhead.DemoFailedError, match="MLOPS_ENV is 'nowhere'"):
        orchestration_overhead.run_demo(tmp_path / "books.json")


def test_the_offline_stores_give_the_same_table(tmp_path: Path):
    """A week of flights: ours, Feast's DuckDB store, ASOF and Polars, each in a process of its own, all measured."""
    case = replace(offline_store.flights_cases(tmp_path, DAYS)[1], rounds=1)
    measured = offline_store.contend(case)
    assert list(measured) == list(offline_store.PEERS)
    assert all(len(result.seconds) == 1 and result.peak > 1e7 and not result.stopped for result in measured.values())


def test_a_contender_that_takes_too_long_is_stopped_and_said_to_be(tmp_path: Path):
    case = replace(offline_store.flights_cases(tmp_path, DAYS)[1], contenders=(offline_store.BARE,))
    contender = offline_store.Contender(offline_store.BARE, case, {"seconds": 0.0, "memory": 0})
    contender.go()
    assert contender.result.stopped == "stopped after 0 s"
    contender.go()
    assert contender.result.seconds == ()


def test_a_contender_with_another_table_is_noticed(tmp_path: Path):
    """In one value, or in the order of the rows."""
    case = offline_store.flights_cases(tmp_path, DAYS)[1]
    labels = pl.read_parquet(case.directory / "labels.parquet")
    frames = [offline_store._frame(view) for view in case.views]
    rows = point_in_time_join(labels.lazy(), frames).collect()
    for who in (offline_store.OURS, offline_store.BARE):
        rows.write_parquet(case.directory / f"{offline_store._slug(who)}.out")
    offline_store._same(case, case.contenders[:1])
    for other in (rows.with_columns(temp=pl.col("temp") + 1e-9), rows.reverse()):
        other.write_parquet(case.directory / "ours.out")
        with pytest.raises(AssertionError, match="DataFrames are different"):
            offline_store._same(case, ())


def test_online_reads_and_publications_are_shown_equal_before_they_are_timed(home: Path):
    """A few rows on a Redis of its own and on SQLite: every figure is there, and plain Feast read the same."""
    measured = online_store.measure(rounds=1, rows=1_500)
    names = {figure.name for figure in measured.figures}
    assert {f"{what}.{kind}" for what in ("publish", "read_1", "read_100") for kind in ("redis", "sqlite")} <= names
    assert "read_100_raw.redis" in names
    assert all(figure.ours > 0 and figure.peer > 0 for figure in measured.figures)
    assert not home.exists()
