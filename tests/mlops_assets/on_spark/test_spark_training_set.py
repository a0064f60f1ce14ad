"""A model whose compute is Spark has the training set that it has without."""

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from mlops_assets import (
    Bool,
    Constant,
    Entity,
    Float64,
    Float64Array,
    Gate,
    MeanOverEntities,
    ModelPipeline,
    String,
    feature_view,
    labels,
    on_demand,
)
from mlops_assets.catalog import asset_key
from mlops_assets.links.spec import link_key
from mlops_assets.links.training_set import training_set_asset
from mlops_assets.trainers import XGBoostClassifier
from mlops_assets.upstream import tables_read
from resources.compute import ComputeResource
from resources.lake import Lake, ParquetIOManager
from resources.spark import SETTINGS, point_in_time, session

pytestmark = pytest.mark.slow

START, DAYS, CUTOFF = datetime(2024, 3, 1, tzinfo=UTC), 10, "2024-03-11"
daily = dg.DailyPartitionsDefinition("2024-03-01", end_date="2024-04-01")
weekly = dg.WeeklyPartitionsDefinition("2024-03-04", end_date="2024-04-01", day_offset=1)
shop, buyer = Entity("shop", "shop_id"), Entity("buyer", "buyer_id")


@feature_view(
    team="shops",
    entities=[shop],
    partitions=daily,
    ttl=timedelta(hours=30),
    cold_start=MeanOverEntities(window=timedelta(days=2)),
    schema={"paid": Float64("Paid"), "kind": String("Kind"), "where": Float64Array("Where", size=2)},
)
def shop_day(raw: pl.LazyFrame) -> pl.LazyFrame:
    """What each shop was paid."""
    return raw


@feature_view(
    team="shops",
    entities=[shop, buyer],
    partitions=daily,
    cold_start=Constant({"visits": 0.0}),
    schema={"visits": Float64("Visits"), "debt": Float64("Debt")},
)
def shop_buyer(raw: pl.LazyFrame) -> pl.LazyFrame:
    """How often a buyer came."""
    return raw


@labels(
    team="shops",
    key="sale_id",
    entities=[shop, buyer],
    partitions=daily,
    request={"price": Float64("Price"), "door": String("Door")},
    targets={"returned": Bool("Was it returned")},
)
def sales(raw: pl.LazyFrame) -> pl.LazyFrame:
    """Every sale."""
    return raw


@on_demand(team="shops", reads=[shop_day, sales], schema={"share": Float64("Price of what was paid")})
def share(price: pl.Expr, paid: pl.Expr) -> pl.Expr:
    """What part of a day's pay a sale is."""
    return price / paid.clip(lower_bound=1.0)


MODEL = ModelPipeline(
    name="returns",
    team="shops",
    labels=sales,
    label="returned",
    features=[shop_day[["paid", "kind", "where"]], shop_buyer, share],
    trainer=XGBoostClassifier(),
    cutoffs=weekly,
    gate=Gate("roc_auc", at_least=0.5),
)


def published(lake: Lake) -> None:
    """Ten days of every table that the model reads: shops that stop, buyers who never came before, nulls."""
    from numpy.random import default_rng

    draw, moments = default_rng(0), [START + timedelta(minutes=37 * step) for step in range(DAYS * 24 * 60 // 37)]
    for name, table in tables_read(MODEL).items():
        count = 120 if name.endswith("_cold_start") else 700
        chosen = sorted(draw.choice(len(moments), count))
        made: dict[str, Any] = {"event_timestamp": [moments[place] for place in chosen]}
        for column, field in table.columns.items():
            made.setdefault(column, drawn(field.dtype, draw.random(count).tolist(), made["event_timestamp"]))
        made |= {"sale_id": [f"sale {place}" for place in range(count)]} if name == "spine" else {}
        columns = {column: field.polars for column, field in table.columns.items()}
        rows = pl.DataFrame(made).select(*columns).cast(columns)  # type: ignore[arg-type]
        keys = ["event_timestamp", *table.join_keys, *(["sale_id"] if name == "spine" else [])]
        rows = rows.unique(keys, keep="first", maintain_order=True).sort(keys)
        dated = rows.with_columns(pl.col("event_timestamp").dt.date().cast(pl.String).alias("day"))
        days = dated.partition_by("day", as_dict=True, include_key=False)
        lake.write_partitions({str(day): part for (day,), part in days.items()}, asset_key(table))


def drawn(dtype: str, values: list[float], moments: list[datetime]) -> list[Any]:
    if dtype == "UnixTimestamp":
        return [moment + timedelta(days=2 * value) for moment, value in zip(moments, values, strict=True)]
    made: dict[str, Callable[[float], Any]] = {
        "Float64": lambda value: value if value > 0.1 else None,
        "Float64Array": lambda value: [value, 1.0],
        "Bool": lambda value: value > 0.5,
        "String": lambda value: f"shop {int(value * 20) % 9}",
    }
    return [made[dtype](value) for value in values]


@pytest.fixture
def lake(tmp_path: Path, home: Path) -> Iterator[Lake]:
    """A lake of these tables, and a session that takes a megabyte of results, and not a row more."""
    with pytest.MonkeyPatch.context() as patch:
        session().stop()
        patch.setitem(SETTINGS, "spark.driver.maxResultSize", "1m")
        lake = Lake(root=str(tmp_path / "lake"))
        published(lake)
        yield lake
        session().stop()


def joined(lake: Lake, kind: str) -> dg.ExecuteInProcessResult:
    """The run of the model's training set where models are trained on that kind of compute."""
    tables = [dg.AssetSpec(asset_key(table), partitions_def=table.partitions) for table in tables_read(MODEL).values()]
    compute = ComputeResource(kind=kind)
    wired = {"io_manager": ParquetIOManager(root=lake.root), "lake": lake, "compute": compute}
    definitions = dg.Definitions([*tables, training_set_asset(MODEL)], resources=wired, executor=dg.in_process_executor)
    with dg.DagsterInstance.ephemeral() as instance:
        return definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key=CUTOFF,
            asset_selection=[link_key(MODEL, "training_set")],
            raise_on_error=False,
        )


def told(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Everything that the run said of the asset; of as many values another engine's file has other bytes."""
    materialization = result.get_asset_materialization_events()[-1].materialization
    metadata = {name: value.value for name, value in materialization.metadata.items() if name != "bytes"}
    checks = {one.check_name: (one.passed, one.description) for one in result.get_asset_check_evaluations()}
    return {"version": (materialization.tags or {})["dagster/data_version"], **metadata, **checks}


@pytest.mark.usefixtures("everywhere")
def test_the_training_set_is_the_same(lake: Lake) -> None:
    """Rows, order, types, the name of the content, checks and what is told."""
    assert set(tables_read(MODEL)) == {"spine", "view_shop_day", "view_shop_day_cold_start", "view_shop_buyer"}
    key = link_key(MODEL, "training_set")
    polars = joined(lake, "local")
    assert polars.success
    expected = lake.scan(key, [CUTOFF]).collect()
    assert expected.height > 400 and not all(column.null_count() for column in expected)
    lake.path(key, CUTOFF).unlink()
    spark = joined(lake, "spark")
    trouble = [event.step_failure_data.error.to_string() for event in spark.get_step_failure_events()]
    assert spark.success, "\n".join(trouble)
    assert_frame_equal(lake.scan(key, [CUTOFF]).collect(), expected, check_exact=True)
    assert told(spark) == told(polars)


def test_a_join_of_another_ttl_fails_the_proof(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is no repetition of the join; nothing is published."""
    honest: Any = point_in_time.point_in_time_join

    def of_another_ttl(spine: Any, views: Any) -> Any:
        return honest(spine, [dataclasses.replace(view, ttl=timedelta(minutes=1)) for view in views])

    monkeypatch.setattr(point_in_time, "point_in_time_join", of_another_ttl)
    spark = joined(lake, "spark")
    failed = {one.check_name for one in spark.get_asset_check_evaluations() if not one.passed}
    assert not spark.success and "point_in_time_proof" in failed
    assert not lake.exists(link_key(MODEL, "training_set"), CUTOFF)
