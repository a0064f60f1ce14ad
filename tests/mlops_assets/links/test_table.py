"""A bad table is never published: each fault ends in an error or check that names it, and the old rows stand."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from mlops_assets import Entity, Float64, String, UnixTimestamp, feature_view, source
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.links.table import table_asset
from resources.lake import Lake, ParquetIOManager

DAY = "2024-03-05"
daily = dg.DailyPartitionsDefinition("2024-03-01", end_date="2024-03-11")
shop = Entity("shop", "shop_id")
NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
GOOD = pl.DataFrame({"shop_id": ["a", "b"], "at": [NOON, NOON], "amount": [1.0, 2.0]})


class Till:
    """A raw source whose rows a test can change."""

    rows = GOOD


@source(
    team="shops",
    key=["shop_id", "at"],
    event_timestamp="at",
    partitions=daily,
    schema={
        "shop_id": String("Shop", max_null_share=0.0),
        "at": UnixTimestamp("When"),
        "amount": Float64("Paid", minimum=0, maximum=100, max_null_share=0.5),
    },
)
def payments(window):
    """Payments."""
    return Till.rows.lazy()


@feature_view(
    team="shops",
    entities=[shop],
    partitions=daily,
    lookback=timedelta(days=1),
    schema={"paid": Float64("Paid in a day")},
)
def shop_day(payments: pl.LazyFrame) -> pl.LazyFrame:
    """What each shop was paid, known at the midnight after."""
    midnight = pl.col("at").dt.truncate("1d") + timedelta(days=1)
    return payments.group_by("shop_id", event_timestamp=midnight).agg(paid=pl.col("amount").sum())


CATALOG = Catalog.of([payments, shop_day])


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(Till, "rows", GOOD)
    return Lake(root=str(tmp_path / "lake"))


def materialize(lake: Lake, *tables, day: str = DAY) -> dg.ExecuteInProcessResult:
    assets = [table_asset(table, CATALOG) for table in CATALOG.tables.values()]
    return dg.materialize(
        assets,
        selection=dg.AssetSelection.assets(*map(asset_key, tables)),
        partition_key=day,
        resources={"io_manager": ParquetIOManager(root=lake.root), "lake": lake},
        raise_on_error=False,
    )


def problem(result: dg.ExecuteInProcessResult) -> str:
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    return "\n".join(error.to_string() for error in errors)


def with_amounts(*amounts: float | None) -> pl.DataFrame:
    return GOOD.head(1).join(pl.DataFrame({"amount": amounts}), how="cross").select(
        pl.format("s{}", pl.int_range(pl.len())).alias("shop_id"), "at", pl.col("amount_right").alias("amount")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (GOOD.drop("amount"), r"source 'shops/payments'.*column \['amount'\] is missing"),
        (GOOD.with_columns(amount=pl.lit("much")), r"column 'amount' is String, declared as Float64"),
        (GOOD.with_columns(pl.col("at").dt.replace_time_zone(None)), r"column 'at' is a time without a zone"),
        (pl.concat([GOOD, GOOD]), r"unique_key: 2 keys \('shop_id', 'at'\) occur more than once"),
        (GOOD.with_columns(shop_id=pl.lit(None, pl.String)), r"unique_key: .*2 rows have a null in the key"),
        (with_amounts(1.0, float("nan")), r"in_bounds: amount: 1 values outside \[0, 100\], e.g. \[nan\]"),
        (with_amounts(float("inf"), 2.0), r"in_bounds: amount: 1 values outside .*\[inf\]"),
        (with_amounts(1.0, -3.0, 200.0), r"in_bounds: amount: 2 values outside .*\[-3.0, 200.0\]"),
        (with_amounts(1.0, None, None), r"null_share: amount: 66.7% null, at most 50.0%"),
        (GOOD.with_columns(at=pl.lit(NOON + timedelta(days=3))), r"2 rows|outside"),
    ],
    ids=[
        "missing column",
        "changed type",
        "no zone",
        "duplicate keys",
        "null key",
        "NaN",
        "infinity",
        "out of bounds",
        "nulls",
        "other day",
    ],
)
def test_a_bad_table_is_refused_by_name_and_the_published_rows_stand(lake, monkeypatch, bad, says):
    """The first publication survives the second, faulty one byte for byte."""
    assert materialize(lake, payments).success
    before = lake.path(asset_key(payments), DAY).read_bytes()
    monkeypatch.setattr(Till, "rows", bad)
    result = materialize(lake, payments)
    assert not result.success
    assert re.search(says, problem(result), re.DOTALL)
    assert lake.path(asset_key(payments), DAY).read_bytes() == before
    assert [path.name for path in Path(str(lake.path(asset_key(payments), DAY))).parent.iterdir()] == [f"{DAY}.parquet"]


def test_a_failed_claim_is_a_failed_check_in_the_ui(lake, monkeypatch):
    """The check says what failed although nothing was materialized."""
    monkeypatch.setattr(Till, "rows", with_amounts(-1.0))
    result = materialize(lake, payments)
    failed = {check.check_name for check in result.get_asset_check_evaluations() if not check.passed}
    assert failed == {"in_bounds"}
    assert not result.get_asset_materialization_events()


def test_an_empty_partition_is_published_with_its_schema_and_a_warning(lake, monkeypatch):
    monkeypatch.setattr(Till, "rows", GOOD.clear())
    result = materialize(lake, payments)
    warned = [check for check in result.get_asset_check_evaluations() if not check.passed]
    assert result.success
    assert [(check.check_name, check.severity) for check in warned] == [("not_empty", dg.AssetCheckSeverity.WARN)]
    assert lake.scan(asset_key(payments)).collect_schema() == GOOD.schema


def test_a_corrupt_upstream_file_is_named_and_the_feature_is_not_touched(lake):
    assert materialize(lake, payments).success
    assert materialize(lake, shop_day, day="2024-03-06").success
    before = lake.path(asset_key(shop_day), "2024-03-06").read_bytes()
    corrupt = Path(str(lake.path(asset_key(payments), DAY)))
    corrupt.write_bytes(corrupt.read_bytes()[:100])
    result = materialize(lake, shop_day, day="2024-03-06")
    assert not result.success
    assert f"{DAY}.parquet" in problem(result)
    assert lake.path(asset_key(shop_day), "2024-03-06").read_bytes() == before


def test_a_view_reads_its_lookback_and_publishes_only_its_own_day(lake):
    """The midnight row of the 6th comes from payments of the 5th, and is published on the 6th alone."""
    assert materialize(lake, payments).success
    assert materialize(lake, shop_day, day="2024-03-06").success
    rows = lake.scan(asset_key(shop_day)).collect()
    assert rows["event_timestamp"].unique().to_list() == [datetime(2024, 3, 6, tzinfo=UTC)]
    assert dict(rows.select("shop_id", "paid").iter_rows()) == {"a": 1.0, "b": 2.0}


def test_reading_what_was_never_published_says_what_to_materialize(lake):
    result = materialize(lake, shop_day)
    assert not result.success
    assert "shops/payments" in problem(result)
    assert "Materialize" in problem(result)


def test_equal_rows_have_equal_data_versions(lake):
    versions = [
        materialize(lake, payments).asset_materializations_for_node("shops__payments")[0].tags["dagster/data_version"]
        for _ in range(2)
    ]
    assert versions[0] == versions[1]
