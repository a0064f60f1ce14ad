"""A feature view written on Spark publishes what its twin on Polars does, under the same name, by the same laws."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from feature_assets.flights.entities import carrier, daily
from feature_assets.flights.punctuality import carrier_punctuality
from feature_assets.flights.sources import raw_flights
from mlops_assets import Float64, Float64Array, Int64, String, UnixTimestamp, feature_view, source
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.declarations import DeclarationError
from mlops_assets.links.table import computed, table_asset
from resources.lake import Lake, ParquetIOManager
from resources.spark import session

pytestmark = pytest.mark.slow

DAY, LAST = "2013-01-12", "2013-01-13"


@feature_view(
    team="flights",
    engine="spark",
    entities=[carrier],
    ttl=carrier_punctuality.ttl,
    lookback=carrier_punctuality.lookback,
    partitions=daily,
    schema=carrier_punctuality.schema,
)
def carrier_punctuality_on_spark(raw_flights: Any) -> Any:
    """How punctual each carrier was over the seven days before each midnight."""
    from pyspark.sql import functions as f

    gone = f.when(f.col("cancelled"), f.col("scheduled_departure"))
    outcomes = raw_flights.withColumn("known_at", f.coalesce("arrival", gone)).dropna(subset=["known_at"])
    coming = f.date_trunc("day", "known_at")
    midnights = f.array(*(coming + f.expr(f"interval {day} days") for day in range(1, 8)))
    return (
        outcomes.withColumn("event_timestamp", f.explode(midnights))
        .groupBy("carrier", "event_timestamp")
        .agg(
            f.avg("arr_delay").alias("carrier_mean_delay_7d"),
            f.avg((f.col("arr_delay") > 15.0).cast("double")).alias("carrier_late_share_7d"),
            f.avg(f.col("cancelled").cast("double")).alias("carrier_cancelled_share_7d"),
            f.count("*").cast("double").alias("carrier_flights_7d"),
        )
    )


def lake_of(root: Path) -> Lake:
    return Lake(root=str(root / "a [lake]"))


def materialize(lake: Lake, catalog: Catalog, table: Any, first: str, last: str) -> dg.ExecuteInProcessResult:
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    assets = [table_asset(one, catalog) for one in catalog.tables.values()]
    definitions = dg.Definitions(
        assets,
        resources={"io_manager": ParquetIOManager(root=lake.root), "lake": lake},
        executor=dg.in_process_executor,
    )
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        return job.execute_in_process(
            instance=instance, tags=tags, asset_selection=[asset_key(table)], raise_on_error=False
        )


def told(result: dg.ExecuteInProcessResult) -> Any:
    return result.get_asset_materialization_events()[-1].materialization


def trouble(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(event.step_failure_data.error.to_string() for event in result.get_step_failure_events())


@pytest.mark.usefixtures("everywhere", "home")
def test_a_view_on_spark_publishes_what_its_twin_on_polars_does(tmp_path: Path) -> None:
    """The same rows, order, types, files, checks; nothing is left beside them, and no driver saw them."""
    lake = lake_of(tmp_path)
    catalog = Catalog.of([raw_flights, carrier_punctuality, carrier_punctuality_on_spark])
    assert materialize(lake, catalog, raw_flights, "2013-01-01", LAST).success
    ours = materialize(lake, catalog, carrier_punctuality_on_spark, DAY, LAST)
    twin = materialize(lake, catalog, carrier_punctuality, DAY, LAST)
    assert ours.success and twin.success, trouble(ours)
    for day in (DAY, LAST):
        expected = lake.scan(asset_key(carrier_punctuality), [day]).collect()
        assert expected.height > 10
        made = lake.scan(asset_key(carrier_punctuality_on_spark), [day]).collect()
        assert_frame_equal(made, expected, rel_tol=1e-12)  # in which order a mean is summed is the engine's
    assert told(ours).metadata["dagster/row_count"] == told(twin).metadata["dagster/row_count"]
    assert {one.check_name: one.passed for one in ours.get_asset_check_evaluations()} == {
        one.check_name: one.passed for one in twin.get_asset_check_evaluations()
    }
    beside = lake.path(asset_key(carrier_punctuality_on_spark)).parent
    assert sorted(path.name for path in beside.iterdir()) == [f"{DAY}.parquet", f"{LAST}.parquet"]


hourly = dg.HourlyPartitionsDefinition("2024-03-05-00:00", end_date="2024-03-05-04:00")
monthly = dg.MonthlyPartitionsDefinition("2024-01-01", end_date="2024-06-01")
NOON = datetime(2024, 3, 5, 2, 30, tzinfo=UTC)
SCHEMA = {
    "shop_id": String("Shop", max_null_share=0.0),
    "at": UnixTimestamp("When"),
    "amount": Float64("Paid", minimum=0, maximum=100, max_null_share=0.5),
    "items": Int64("How many"),
    "where": Float64Array("Where", size=2, minimum=-1, maximum=1),
}


class Till:
    """A raw source on Spark whose rows a test can change."""

    rows = ""


GOOD = "('a', timestamp'2024-03-05 02:30:00Z', 1.0D, 3L, array(0.5D, 0.5D))"


def payments(partitions: Any) -> Any:
    @source(
        team="shops", engine="spark", key=["shop_id", "at"], event_timestamp="at", partitions=partitions, schema=SCHEMA
    )
    def payments(window: Any) -> Any:
        """Payments."""
        return session().sql(f"select * from values {Till.rows} as t(shop_id, at, amount, items, where)")

    return payments


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (f"{GOOD}, {GOOD}", r"unique_key: 1 keys \('shop_id', 'at'\) occur more than once, e.g. \[\['a', '2024-03-05"),
        (GOOD.replace("'a'", "cast(null as string)"), "unique_key: .*1 rows have a null in the key"),
        (GOOD.replace("1.0D", "double('nan')"), r"in_bounds: amount: 1 values outside \[0, 100\], e.g. \[nan\]"),
        (GOOD.replace("1.0D", "-3.0D"), r"in_bounds: amount: 1 values outside \[0, 100\], e.g. \[-3.0\]"),
        (GOOD.replace("0.5D)", "7.0D)"), r"in_bounds: where: 1 values"),
        (GOOD.replace(", 0.5D)", ")"), r"in_bounds: where: 1 values"),
        (GOOD.replace("1.0D", "cast(null as double)"), r"null_share: amount: 100.0% null, at most 50.0%"),
        (GOOD.replace("1.0D", "'much'"), "column 'amount' is string, declared as Float64"),
        (GOOD.replace("timestamp'", "timestamp_ntz'").replace("Z'", "'"), "column 'at' is a time without a zone"),
        (GOOD.replace("02:30", "03:30"), r"returned 1 rows outside of .*at=2024-03-05 03:30"),
    ],
    ids=["twice", "no key", "NaN", "bounds", "element", "length", "nulls", "type", "zone", "other hour"],
)
def test_a_bad_table_is_refused_by_name_and_the_published_rows_stand(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, rows: str, says: str
) -> None:
    """Byte for byte; nothing of the faulty one is left."""
    lake, hour = lake_of(tmp_path), "2024-03-05-02:00"
    table = payments(hourly)
    catalog, key = Catalog.of([table]), asset_key(table)
    published = lake.write(pl.DataFrame({"shop_id": ["before"]}), key, hour)
    before = published.read_bytes()
    monkeypatch.setattr(Till, "rows", rows)
    result = materialize(lake, catalog, table, hour, hour)
    assert not result.success
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(trouble(result))
    assert published.read_bytes() == before
    assert [path.name for path in published.parent.iterdir()] == [published.name]


def test_a_partition_without_rows_is_a_file_without_rows(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of months too, whose lengths differ: every partition of the run has its rows and no others, of one schema."""
    lake, table = lake_of(tmp_path), payments(monthly)
    moments = ["2024-01-31 23:59:59.999999", "2024-02-01 00:00:00", "2024-04-30 23:59:59.999999"]
    monkeypatch.setattr(Till, "rows", ", ".join(GOOD.replace("2024-03-05 02:30:00", moment) for moment in moments))
    result = materialize(lake, Catalog.of([table]), table, "2024-01-01", "2024-04-01")
    assert result.success, trouble(result)
    held = {
        month: lake.scan(asset_key(table), [month]).collect()["at"].dt.date().to_list()
        for month in lake.partitions(asset_key(table))
    }
    assert held == {
        "2024-01-01": [date(2024, 1, 31)],
        "2024-02-01": [date(2024, 2, 1)],
        "2024-03-01": [],
        "2024-04-01": [date(2024, 4, 30)],
    }
    whole = lake.scan(asset_key(table)).collect()
    declared = {name: field.polars for name, field in SCHEMA.items()}
    assert dict(whole.schema) == declared


def test_callers_on_polars_get_the_same_rows(home: Path) -> None:
    """Events as they come, say, ask for few rows and have them here."""
    window = (datetime(2013, 1, 9, tzinfo=UTC), datetime(2013, 1, 10, tzinfo=UTC))
    flights = raw_flights.compute((window[0] - timedelta(days=9), window[1]))
    rows, twin = (
        computed(view, {"raw_flights": flights}, window).collect().sort("event_timestamp", "carrier")
        for view in (carrier_punctuality_on_spark, carrier_punctuality)
    )
    assert_frame_equal(rows, twin.select(rows.columns), rel_tol=1e-12)


def test_an_engine_that_is_none_is_refused() -> None:
    def seen(raw: Any) -> Any:
        return raw

    with pytest.raises(DeclarationError, match=r"engine is 'dask' .*polars or spark"):
        feature_view(team="shops", entities=[carrier], engine="dask", schema={"x": Float64})(seen)  # type: ignore[arg-type]
