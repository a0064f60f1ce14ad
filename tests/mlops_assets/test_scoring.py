"""Batch scoring: the inputs of a row are those that look-up would find at its moment, a bounded number at a time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_assets.scoring import Chunks, Told, UndeclaredInputError, joined_rows, key_of
from mlops_assets.serving.plan import FeaturePlan, PlannedEntity, RequestField, ViewRead, look_up, microseconds
from mlops_assets.serving.transform import Transform, serialised

START = datetime(2024, 1, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
WARM = Transform(
    "test/warm",
    {"temp": "Float64", "miles": "Float64", "event_timestamp": "UnixTimestamp"},
    {
        "warmth": serialised((pl.col("temp") * pl.col("miles")).alias("warmth")),
        "hour": serialised(pl.col("event_timestamp").dt.hour().cast(pl.Int64).alias("hour")),
    },
)
PLAN = FeaturePlan(
    model="test/late",
    key="flight_id",
    entities=(PlannedEntity("origin", "String"), PlannedEntity("dest", "String")),
    request=(RequestField("miles", "Float64"),),
    views=(
        ViewRead("test/weather", "test__weather", ("origin",), ("temp", "wind"), 3600),
        ViewRead("test/route", "test__route", ("origin", "dest"), ("delay",), cold_start_table="test__route__cold"),
        ViewRead("test/carrier", "test__carrier", ("dest",), ("share",), 7200, None, {"share": 0.25}),
    ),
    inputs=("miles", "temp", "wind", "delay", "share", "warmth", "hour"),
    transforms=(WARM,),
)
TABLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "test__weather": (("origin",), ("temp", "wind")),
    "test__route": (("origin", "dest"), ("delay",)),
    "test__route__cold": ((), ("delay",)),
    "test__carrier": (("dest",), ("share",)),
}
PORTS = st.sampled_from(["EWR", "JFK"])
MINUTES = st.integers(0, 300)
VALUES = st.none() | st.floats(-50, 50, allow_nan=False)


class AsOf:
    """An online store as it would be at a moment: the newest row per key that was there by then."""

    def __init__(self, tables: Mapping[str, pl.DataFrame], at: datetime) -> None:
        self._tables = {name: frame.filter(pl.col("event_timestamp") <= at) for name, frame in tables.items()}
        self._reads: Sequence[Any] = ()

    def reader(self, reads: Sequence[Any]) -> AsOf:
        self._reads = reads
        return self

    def read(self, keys: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[Any]]:
        return [[self._newest(read, key) for key in wanted] for read, wanted in zip(self._reads, keys, strict=True)]

    def _newest(self, read: Any, key: tuple[Any, ...]) -> tuple[int, list[Any]] | None:
        rows = self._tables[read.table]
        for name, value in zip(TABLES[read.table][0], key, strict=True):
            rows = rows.filter(pl.col(name) == value)
        if rows.is_empty():
            return None
        row = rows.sort("event_timestamp", maintain_order=True).row(-1, named=True)
        return microseconds(row["event_timestamp"]), [row[name] for name in read.features]


@st.composite
def histories(draw: st.DrawFn) -> dict[str, pl.DataFrame]:
    """Each table's rows over five hours, one for a key and moment."""
    found = {}
    for name, (keys, features) in TABLES.items():
        made = dict.fromkeys(keys, PORTS) | {"event_timestamp": MINUTES} | dict.fromkeys(features, VALUES)
        rows = draw(st.lists(st.fixed_dictionaries(made), max_size=12))
        kept = {tuple(row[key] for key in (*keys, "event_timestamp")): row for row in rows}
        found[name] = frame(list(kept.values()), keys, features)
    return found


def frame(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], numbers: Sequence[str]) -> pl.DataFrame:
    timed = [{**row, "event_timestamp": START + timedelta(minutes=row["event_timestamp"])} for row in rows]
    types = {**dict.fromkeys(texts, pl.String), **dict.fromkeys(numbers, pl.Float64), "event_timestamp": TIME}
    return pl.DataFrame(timed, schema=types)


EVENTS = st.lists(
    st.fixed_dictionaries({"origin": PORTS, "dest": PORTS, "miles": VALUES, "event_timestamp": MINUTES}), max_size=12
)


@settings(max_examples=60)
@given(histories(), EVENTS, st.integers(1, 15))
def test_a_scored_row_has_the_inputs_that_look_up_finds(
    tables: dict[str, pl.DataFrame], events: list[dict[str, Any]], rows: int
) -> None:
    """At each event's moment: expired and missing rows, both kinds of cold start, what is computed; any chunk size."""
    spine = frame(events, ["origin", "dest"], ["miles"]).with_columns(flight_id=pl.int_range(pl.len()).cast(pl.String))
    lazy = {name: table.lazy() for name, table in tables.items()}
    found = list(joined_rows(PLAN, "late:1", spine.lazy(), lazy, rows))
    scored = {row["flight_id"]: row for part in found for row in part.to_dicts()}
    assert len(scored) == sum(part.height for part in found) == spine.height
    for event in spine.to_dicts():
        at = event["event_timestamp"]
        (looked,) = look_up(PLAN, AsOf(tables, at), [event], at)
        assert [scored[event["flight_id"]][name] for name in PLAN.inputs] == looked.values


def test_no_more_rows_than_asked_for_are_there_at_once() -> None:
    """Chunks are in order of time and as small as said; only rows of one moment stay together."""
    spine = frame([{"event_timestamp": n // 2, "miles": 1.0} for n in range(600)], ["origin", "dest"], ["miles"])
    tables = {name: frame([], *columns).lazy() for name, columns in TABLES.items()}
    found = list(joined_rows(PLAN, "late:1", spine.lazy(), tables, 50))
    assert [part for part in found if part.height] and max(part.height for part in found) <= 50
    times = pl.concat(found)["event_timestamp"]
    assert times.len() == 600 and times.is_sorted()
    ends = [(one["event_timestamp"][-1], other["event_timestamp"][0]) for one, other in pairwise(found)]
    assert all(before < after for before, after in ends)
    half = times[299]
    rest = list(joined_rows(PLAN, "late:1", spine.lazy(), tables, 50, after=half))
    assert pl.concat(rest)["event_timestamp"].min() > half and sum(part.height for part in rest) == 300


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda spine, tables: (spine.drop("miles"), tables), "late:1 reads miles,"),
        (lambda spine, tables: (spine, {k: v for k, v in tables.items() if "carrier" not in k}), "reads share,"),
        (
            lambda spine, tables: (spine, {k: v for k, v in tables.items() if "cold" not in k}),
            "reads test__route__cold",
        ),
        (
            lambda spine, tables: (spine, tables | {"test__weather": tables["test__weather"].drop("wind")}),
            "reads wind,",
        ),
    ],
)
def test_what_a_release_reads_and_is_not_there_is_named(change: Any, told: str) -> None:
    """Before any row is read."""
    spine = frame([], ["origin", "dest"], ["miles"]).lazy()
    tables = {name: frame([], *columns).lazy() for name, columns in TABLES.items()}
    with pytest.raises(UndeclaredInputError, match=told):
        next(joined_rows(PLAN, "late:1", *change(spine, tables), 10))


# -- chunks


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"rows of {name}")
    return [tmp_path / "a", tmp_path / "b"]


def test_a_key_is_made_of_what_the_rows_depend_on(files: list[Path]) -> None:
    """Release, version, size, contents and their order; not of names, places and times."""
    key = key_of(["late:1", "3", "100"], files)
    moved = [Path(shutil.move(file, file.with_suffix(".moved"))) for file in files]
    assert key_of(["late:1", "3", "100"], moved) == key
    others = [key_of(words, moved) for words in (["late:2", "3", "100"], ["late:1", "4", "100"], ["late:1", "3", "99"])]
    moved[1].write_text("rows of B")
    others += [key_of(["late:1", "3", "100"], some) for some in (moved, moved[:1], moved[::-1])]
    assert len({key, *others}) == 7


def scores(first: int, last: int) -> pl.DataFrame:
    moments = [START + timedelta(minutes=n) for n in range(first, last)]
    return pl.DataFrame({"event_timestamp": moments, "prediction": [n / 100 for n in range(first, last)]}).with_columns(
        pl.col("event_timestamp").cast(TIME)
    )


def test_chunks_stay_until_the_table_is_published_and_no_longer(home: Path) -> None:
    """An error leaves them for the next run; half a chunk is none; the end of the block deletes them."""
    with pytest.raises(OSError, match="disk"), Chunks.of("test/late", "2024-01-01", "k") as chunks:
        assert chunks.until is None
        chunks.keep(scores(0, 5))
        chunks.keep(scores(5, 9))
        (chunks.directory / "abc.tmp").write_bytes(b"half")
        raise OSError("disk full")
    with Chunks.of("test/late", "2024-01-01", "k") as chunks:
        assert len(chunks.finished) == 2 and chunks.until == START + timedelta(minutes=8)
        chunks.keep(scores(9, 12))
        assert [part.height for part in chunks.read(5)] == [5, 5, 2]
        assert pl.concat(chunks.read(7)).equals(scores(0, 12))
    with Chunks.of("test/late", "2024-01-01", "k") as chunks:
        assert not chunks.finished and list(chunks.read(5)) == []


def test_chunks_under_another_key_are_deleted_unread(home: Path) -> None:
    """Another release's rows, or those of other data, would be taken for this one's."""
    with pytest.raises(KeyError), Chunks.of("test/late", "2024-01-01", "old") as chunks:
        chunks.keep(scores(0, 5))
        raise KeyError
    with Chunks.of("test/late", "2024-01-01", "new") as chunks:
        assert not chunks.finished and not (chunks.directory.parent / "old").exists()


def test_two_writers_of_one_partition_take_turns(home: Path) -> None:
    """The second begins when the first has published; it finds no chunks of it, and deletes none under its hands."""
    order: list[str] = []
    began = Event()

    def first() -> None:
        with Chunks.of("test/late", "2024-01-01", "k") as chunks:
            began.set()
            time.sleep(0.2)
            chunks.keep(scores(0, 5))
            order.append("first")

    def second() -> None:
        began.wait(5)
        with Chunks.of("test/late", "2024-01-01", "k") as chunks:
            order.append("second")
            assert not chunks.finished

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result()
    assert order == ["first", "second"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 12), max_size=5))
def test_a_version_depends_on_the_rows_and_not_on_how_they_came(cuts: list[int]) -> None:
    """The same rows in other pieces: the same numbers, the same version; another row, another version."""

    def told(rows: pl.DataFrame, bounds: list[int]) -> Told:
        found = Told()
        for start, end in zip([0, *bounds], [*bounds, rows.height], strict=True):
            found.add(rows[start:end])
        return found

    rows = scores(0, 12)
    whole, parts = told(rows, []), told(rows, sorted(cuts))
    assert (parts.version, parts.rows, parts.finite) == (whole.version, 12, 12)
    assert (parts.lowest, parts.highest) == (whole.lowest, whole.highest) == (0.0, 0.11)
    assert told(rows[::-1], []).version != whole.version


def test_a_missing_score_is_counted(home: Path) -> None:
    """NaN, infinite and null are no scores."""
    told = Told()
    told.add(pl.DataFrame({"prediction": [0.5, float("nan"), float("inf"), None]}))
    assert (told.rows, told.finite, told.lowest, told.highest) == (4, 1, 0.5, 0.5)
