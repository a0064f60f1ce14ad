"""The lake keeps every table readable: whole files, one schema, only the rows that belong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.lake import (
    Lake,
    NotATableError,
    NotMaterializedError,
    ParquetIOManager,
    PartitionColumnError,
    RowsOutsidePartitionsError,
    SchemaDriftError,
    SeveralPartitionsError,
    UnreadableFileError,
    split_by_window,
)

pytestmark = pytest.mark.usefixtures("home")  # writers of a table on S3 take turns by a lock there
DAILY = dg.DailyPartitionsDefinition("2013-01-01", end_date="2014-01-02")
DAYS = ["2013-01-01", "2013-01-02", "2013-01-03"]
UTC_US = pl.Datetime("us", "UTC")


def day(name: str) -> datetime:
    return datetime.fromisoformat(name).replace(tzinfo=UTC)


def rows(*moments: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {"event_timestamp": moments, "value": range(len(moments))}, schema_overrides={"event_timestamp": UTC_US}
    )


@pytest.fixture(params=["disk", "s3"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """The same laws hold on a disk and on S3."""
    root = str(tmp_path / "a [lake]") if request.param == "disk" else f"{request.getfixturevalue('s3')}/some/prefix"
    return Lake(root=root)


def test_a_written_table_is_read_back_equal(lake: Lake):
    """Write then scan is the identity, for one file and for several partitions in order."""
    first, second = rows(day(DAYS[0])), rows(day(DAYS[1]))
    lake.write(first, "flights/weather")
    lake.write_partitions({DAYS[1]: second, DAYS[0]: first.lazy().collect()}, ["flights", "daily"])
    assert lake.scan("flights/weather").collect().equals(first)
    assert lake.scan("flights/daily").collect().equals(pl.concat([first, second]))
    assert lake.scan("flights/daily", [DAYS[1]]).collect().equals(second)
    assert lake.partitions("flights/daily") == DAYS[:2]
    assert lake.partitions("flights/weather") == []
    assert lake.exists("flights/weather") and not lake.exists("flights/weather", DAYS[0])


def test_an_odd_partition_key_is_one_file_and_comes_back(lake: Lake):
    """A slash, a colon or a percent sign in a key makes no directory and no other key."""
    keys = sorted(["a/b", "2013-01-01-05:00", "50%", "x|y"])
    for key in keys:
        lake.write(rows(day(DAYS[0])), "t", key)
    assert lake.partitions("t") == keys
    assert lake.scan("t", ["a/b"]).collect().height == 1


def test_what_another_process_published_is_seen(s3: str):
    """A listing is never remembered: a second writer's partition is there at the next look."""
    import boto3

    lake = Lake(root=s3)
    lake.write(rows(day(DAYS[0])), "t", DAYS[0])
    assert lake.partitions("t") == DAYS[:1]
    bucket = boto3.resource("s3").Bucket(s3.removeprefix("s3://"))
    bucket.copy({"Bucket": bucket.name, "Key": f"t/{DAYS[0]}.parquet"}, f"t/{DAYS[1]}.parquet")
    assert lake.partitions("t") == DAYS[:2]
    assert lake.scan("t").collect().height == 2


def test_a_missing_table_is_named_with_what_to_do(lake: Lake):
    """Nothing there: the error names the asset, what was asked, what exists, and the fix."""
    with pytest.raises(NotMaterializedError, match=r"'flights/weather'.*2013-01-01.*exists: none.*Materialize"):
        lake.scan("flights/weather", ["2013-01-01"])
    lake.write(rows(day(DAYS[1])), "flights/weather", DAYS[1])
    with pytest.raises(NotMaterializedError, match=rf"exists: {DAYS[1]}"):
        lake.scan("flights/weather", ["2013-01-01"])


def test_partitions_with_other_columns_are_refused_by_name(lake: Lake):
    """A changed type or a lost column is named before any row is read."""
    lake.write(rows(day(DAYS[0])), "t", DAYS[0])
    lake.write(rows(day(DAYS[1])).cast({"value": pl.String}), "t", DAYS[1])
    with pytest.raises(
        SchemaDriftError, match=r"'2013-01-01' and '2013-01-02' of asset 't'.*value is Int64 and String"
    ):
        lake.scan("t")
    lake.write(rows(day(DAYS[1])).drop("value"), "t", DAYS[1])
    with pytest.raises(SchemaDriftError, match=r"value is Int64 and missing"):
        lake.scan("t")


def test_columns_may_come_in_another_order(lake: Lake):
    """Names bind columns, not places."""
    lake.write(rows(day(DAYS[0])), "t", DAYS[0])
    lake.write(rows(day(DAYS[1])).select("value", "event_timestamp"), "t", DAYS[1])
    assert lake.scan("t").collect().height == 2


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no table, but long enough to be one"])
def test_a_broken_file_is_named(lake: Lake, damage: bytes):
    """Empty, cut or foreign bytes end in an error that names file, asset and fix; other partitions still read."""
    lake.write(rows(day(DAYS[0])), "t", DAYS[0])
    lake.write(rows(day(DAYS[1])), "t", DAYS[1]).write_bytes(damage)
    with pytest.raises(
        UnreadableFileError, match=r"t/2013-01-02.parquet of asset 't'.*materialize partition '2013-01-02'"
    ):
        lake.scan("t")
    assert lake.scan("t", [DAYS[0]]).collect().height == 1


def test_a_truncated_file_is_named(tmp_path: Path):
    """A file that lost its tail is never read as a shorter table."""
    lake = Lake(root=str(tmp_path))
    path = lake.write(pl.DataFrame({"a": range(10_000)}), "t")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UnreadableFileError, match=r"all\.parquet"):
        lake.scan("t")


def test_a_failing_write_leaves_the_published_table(tmp_path: Path):
    """A frame that cannot be written changes nothing and leaves nothing beside."""
    lake = Lake(root=str(tmp_path))
    lake.write(rows(day(DAYS[0])), "t")
    with pytest.raises(pl.exceptions.PolarsError):
        lake.write(pl.LazyFrame({"a": ["x"]}).select(pl.col("a").cast(pl.Int64)), "t")
    with pytest.raises((pl.exceptions.PolarsError, TypeError)):
        lake.write(pl.DataFrame({"a": [object()]}, schema={"a": pl.Object}), "t")
    assert lake.scan("t").collect().equals(rows(day(DAYS[0])))
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["all.parquet"]


LAST_MOMENT = timedelta(days=3) - timedelta(microseconds=1)
moments = st.timedeltas(timedelta(0), LAST_MOMENT).map(lambda since: datetime(2013, 1, 1, tzinfo=UTC) + since)


@given(st.lists(moments, max_size=30))
def test_every_row_goes_to_the_one_day_it_is_of(times: Sequence[datetime]):
    """Splitting loses no row, repeats none, keeps their order, and gives each asked day a table."""
    frame = rows(*times)
    windows = {name: DAILY.time_window_for_partition_key(name) for name in DAYS}
    parts = split_by_window(frame, "event_timestamp", windows, dg.AssetKey("t"))
    assert list(parts) == DAYS
    for name, part in parts.items():
        assert part.equals(frame.filter(pl.col("event_timestamp").dt.strftime("%Y-%m-%d") == name))
    assert sum(part.height for part in parts.values()) == frame.height


@given(st.lists(moments, max_size=5), st.sampled_from([day("2012-12-31"), day("2013-01-04"), None, day("2013-01-02")]))
def test_a_row_of_no_asked_day_is_an_error(times: Sequence[datetime], stray: datetime | None):
    """Before, after, between or without a time: the error counts the rows and shows one."""
    windows = {name: DAILY.time_window_for_partition_key(name) for name in ("2013-01-01", "2013-01-03")}
    kept = [moment for moment in times if moment.day != 2]
    frame = pl.DataFrame({"event_timestamp": [*kept, stray]}, schema={"event_timestamp": UTC_US})
    with pytest.raises(RowsOutsidePartitionsError, match=r"'t' returned 1 rows outside of 2013-01-01, 2013-01-03"):
        split_by_window(frame, "event_timestamp", windows, dg.AssetKey("t"))


@pytest.mark.parametrize("dtype", [pl.Datetime("us"), pl.Datetime("us", "America/New_York"), pl.Date, pl.String])
def test_a_time_that_is_not_utc_is_refused(dtype: pl.DataType):
    """A naive or local time would put rows into the wrong day."""
    frame = pl.DataFrame(schema={"event_timestamp": dtype})
    with pytest.raises(PartitionColumnError, match=r"'t'.*event_timestamp.*needed: Datetime"):
        split_by_window(frame, "event_timestamp", {}, dg.AssetKey("t"))


# ---------------------------------------------------------------------- as Dagster runs it


def asset_of(
    frame: pl.DataFrame, metadata: Mapping[str, object] | None = None, **options: object
) -> dg.AssetsDefinition:
    @dg.asset(
        key=["flights", "weather"],
        partitions_def=DAILY,
        backfill_policy=dg.BackfillPolicy.single_run(),
        metadata=metadata,
        **options,
    )
    def weather() -> pl.LazyFrame:
        return frame.lazy()

    return weather


def reader(partition_mapping: dg.PartitionMapping | None = None, **options: object) -> dg.AssetsDefinition:
    @dg.asset(
        key=["flights", "count"],
        ins={"weather": dg.AssetIn(key=["flights", "weather"], partition_mapping=partition_mapping)},
        metadata={"partition_column": None},
        **options,
    )
    def count(weather: pl.LazyFrame) -> pl.DataFrame:
        return weather.select(pl.len()).collect()

    return count


def run(
    lake: Lake,
    *assets: dg.AssetsDefinition,
    days: tuple[str, str] | None = None,
    selection: Sequence[dg.AssetsDefinition] | None = None,
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        assets,
        selection=selection,
        resources={"io_manager": ParquetIOManager(root=lake.root)},
        tags={"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[1]}
        if days
        else None,
    )


def test_a_range_is_one_run_and_one_file_a_day(lake: Lake):
    """A month in one run: every day has a file with the schema, also the days without rows."""
    frame = rows(day("2013-03-01"), day("2013-03-01") + timedelta(hours=23), day("2013-03-31"))
    result = run(lake, asset_of(frame), days=("2013-03-01", "2013-03-31"))
    assert len(lake.partitions("flights/weather")) == 31
    assert lake.scan("flights/weather", ["2013-03-05"]).collect().schema == frame.schema
    assert lake.scan("flights/weather").collect().equals(frame)
    events = {
        event.partition: event.step_materialization_data.materialization
        for event in result.get_asset_materialization_events()
    }
    assert len(events) == 31
    assert events["2013-03-01"].metadata["dagster/row_count"].value == 2
    assert events["2013-03-02"].metadata["dagster/row_count"].value == 0
    assert events["2013-03-01"].metadata["path"].value == str(lake.path("flights/weather", "2013-03-01"))
    schema = events["2013-03-01"].metadata["dagster/column_schema"].schema
    assert [(column.name, column.type) for column in schema.columns] == [
        ("event_timestamp", "Datetime(time_unit='us', time_zone='UTC')"),
        ("value", "Int64"),
    ]


def test_rows_outside_the_run_publish_nothing(lake: Lake):
    """A run for two days that returns a third day's row fails, and no day is published."""
    with pytest.raises(RowsOutsidePartitionsError, match="1 rows outside"):
        run(lake, asset_of(rows(day(DAYS[0]), day(DAYS[2]))), days=(DAYS[0], DAYS[1]))
    assert lake.partitions("flights/weather") == []


def test_a_lookback_reads_what_exists(lake: Lake):
    """A window that reaches before the first partition reads the ones there are."""
    back = dg.TimeWindowPartitionMapping(start_offset=-2, end_offset=0, allow_nonexistent_upstream_partitions=True)
    weather = asset_of(rows(*map(day, DAYS)))
    count = reader(back, partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    run(lake, weather, days=(DAYS[0], DAYS[2]))
    for name, expected in zip(DAYS, (1, 2, 3), strict=True):
        run(lake, weather, count, days=(name, name), selection=[count])
        assert lake.scan("flights/count", [name]).collect().item() == expected


def test_an_unpartitioned_reader_sees_every_partition(lake: Lake):
    """Without partitions of its own, an asset reads the whole table."""
    weather, count = asset_of(rows(*map(day, DAYS))), reader()
    run(lake, weather, days=(DAYS[0], DAYS[2]))
    run(lake, weather, count, selection=[count])
    assert lake.scan("flights/count").collect().item() == 3


def test_reading_before_anything_is_published_names_the_upstream(lake: Lake):
    """The error of a run that came too early says which asset to materialize."""
    weather, count = asset_of(rows()), reader(partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    with pytest.raises(NotMaterializedError, match="Materialize 'flights/weather' first"):
        run(lake, weather, count, days=(DAYS[0], DAYS[1]), selection=[count])


def test_a_partition_that_is_no_slice_of_time_is_stored_whole(lake: Lake):
    """With partition_column None, rows of any time belong to the one partition of the run, never to several."""
    frame = rows(day("2012-05-05"), day("2013-06-06"))
    whole = asset_of(frame, metadata={"partition_column": None})
    run(lake, whole, days=(DAYS[1], DAYS[1]))
    assert lake.scan("flights/weather", [DAYS[1]]).collect().equals(frame)
    with pytest.raises(SeveralPartitionsError, match="one partition at a time"):
        run(lake, whole, days=(DAYS[0], DAYS[1]))


def test_only_frames_are_tables(lake: Lake):
    """An asset that returns something else is told what may be stored; nothing is pickled."""

    @dg.asset
    def wrong():
        return {"a": 1}

    with pytest.raises(NotATableError, match="'wrong' returned dict"):
        run(lake, wrong)
    assert not lake.exists("wrong")


def test_the_default_lake_is_under_home(home: Path):
    """Without a root the lake lies in MLOPS_HOME, found when it is used."""
    path = Lake().write(rows(), "flights/weather")
    assert Path(path) == home / "lake" / "flights" / "weather" / "all.parquet"


KEYED = {"k": pl.String, "at": UTC_US, "value": pl.Int64}


def keyed(*given: tuple[str, int, int]) -> pl.DataFrame:
    """Rows of key, hour and value."""
    return pl.DataFrame([(k, day(DAYS[0]) + timedelta(hours=h), v) for k, h, v in given], KEYED, orient="row")


def test_added_rows_replace_those_of_their_key_and_leave_the_others(lake: Lake) -> None:
    """What is returned is what lies there: sorted, each key once, with the row that came last."""
    key = "flights/weather"
    lake.upsert({DAYS[0]: keyed(("b", 2, 1), ("a", 1, 1))}, key, ["at", "k"])
    merged = lake.upsert({DAYS[0]: keyed(("b", 2, 2), ("a", 3, 1), ("b", 2, 3))}, key, ["at", "k"])[DAYS[0]]
    assert merged.equals(keyed(("a", 1, 1), ("b", 2, 3), ("a", 3, 1)))
    assert lake.scan(key).collect().equals(merged)


def test_adding_what_is_there_writes_nothing(tmp_path: Path) -> None:
    """A batch that comes again costs its reading, and readers' caches stay good."""
    lake, added = Lake(root=str(tmp_path)), {DAYS[0]: keyed(("a", 1, 1))}
    lake.upsert(added, "flights/weather", ["at", "k"])
    before = lake.path("flights/weather", DAYS[0]).stat().st_mtime_ns
    lake.upsert(added, "flights/weather", ["at", "k"])
    assert lake.path("flights/weather", DAYS[0]).stat().st_mtime_ns == before


def test_rows_of_another_schema_are_not_added(lake: Lake) -> None:
    """The error names the column, and what was there stands."""
    lake.upsert({DAYS[0]: keyed(("a", 1, 1))}, "flights/weather", ["at", "k"])
    other = keyed(("a", 2, 1)).with_columns(pl.col("value").cast(pl.Float64))
    with pytest.raises(SchemaDriftError, match="value is Int64 and Float64"):
        lake.upsert({DAYS[0]: other}, "flights/weather", ["at", "k"])
    assert lake.scan("flights/weather").collect().equals(keyed(("a", 1, 1)))


def test_writers_at_once_lose_nothing(lake: Lake) -> None:
    """Each adds its own rows to the same partition, from threads of their own."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: lake.upsert({DAYS[0]: keyed(("a", n, n))}, "flights/weather", ["at", "k"]), range(12)))
    assert lake.scan("flights/weather").collect()["value"].to_list() == list(range(12))
