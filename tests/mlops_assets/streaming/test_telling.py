"""Dagster knows what the stream changed, runs nothing because of it, and is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest

from mlops_assets.catalog import asset_key
from mlops_assets.streaming.offline import OfflineTables
from mlops_assets.streaming.telling import Telling
from resources.environment import prepare_home
from resources.lake import Lake

if TYPE_CHECKING:
    from conftest import Sensors


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        yield instance


def changed(sensors: Sensors, *hours: float) -> dict[str, list[str]]:
    """Events at these hours are put in the lake."""
    schema = {name: field.polars for name, field in sensors.module.readings.schema.items()}
    rows = pl.DataFrame([sensors.event("a", hour, 1.0) for hour in hours], schema)
    return OfflineTables(sensors.module.readings, sensors.catalog, Lake()).apply(rows).partitions


def telling(sensors: Sensors, every: float = 0.0) -> Telling:
    return Telling(sensors.module.readings, sensors.catalog, Lake(), every)


def materialized(instance: dg.DagsterInstance, key: Any) -> dict[str | None, Any]:
    records = instance.fetch_materializations(dg.AssetKey.from_coercible(key), limit=50).records
    return {record.partition_key: record.asset_materialization for record in records}


def test_every_changed_partition_is_told_with_its_rows_its_offset_and_its_checks(
    sensors: Sensors, instance: dg.DagsterInstance
) -> None:
    """Of the source, of the views that read it, and of their online faces."""
    told = telling(sensors)
    told.note(changed(sensors, 1, 2, 25), **{"stream/offset": "77"})
    assert told.due() and told.tell() is None and not told.due()
    source = materialized(instance, asset_key(sensors.module.readings))
    assert {name: event.metadata["dagster/row_count"].value for name, event in source.items()} == {
        "2024-03-01": 2,
        "2024-03-02": 1,
    }
    assert source["2024-03-01"].metadata["stream/offset"].value == "77"
    view = asset_key(sensors.module.recent)
    assert set(materialized(instance, view)) == {"2024-03-01", "2024-03-02"}
    assert set(materialized(instance, ["sensors", "online", "recent"])) == {None}
    keys = [dg.AssetCheckKey(view, name) for name in ("unique_key", "in_bounds", "null_share")]
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert [found[key].status.value for key in keys] == ["SUCCEEDED"] * 3


def test_equal_content_has_the_data_version_of_its_batch_run(sensors: Sensors, instance: dg.DagsterInstance) -> None:
    """What reads it is not computed again because a stream published it."""
    from mlops_assets.links import spec

    told = telling(sensors)
    told.note(changed(sensors, 1))
    told.tell()
    rows = sensors.batch([sensors.event("a", 1, 1.0)])["recent"]
    event = materialized(instance, asset_key(sensors.module.recent))["2024-03-01"]
    assert event.tags["dagster/data_version"] == spec.data_version(rows).value


def test_no_automation_runs_for_what_the_stream_keeps_up_to_date(
    sensors: Sensors, instance: dg.DagsterInstance
) -> None:
    """The views' conditions see that they came after what they read; news of the source alone would start them."""
    from mlops_assets.links.online import online_key
    from mlops_assets.pipeline import table_definitions
    from resources.environment import resources_for

    alone = dg.Definitions(resources=resources_for())
    definitions = dg.Definitions.merge(table_definitions(sensors.catalog), alone)
    views = [key(view) for view in sensors.module.VIEWS for key in (asset_key, online_key)]
    told, cursor = telling(sensors), None
    for hours in ((1,), (2, 25)):
        told.note(changed(sensors, *hours))
        told.tell()
        ticked = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
        cursor = ticked.cursor
        assert [ticked.get_num_requested(key) for key in views] == [0] * 6
    told.note({"sensors/readings": changed(sensors, 3)["sensors/readings"]})
    told.tell()
    ticked = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
    assert ticked.get_num_requested(asset_key(sensors.module.recent)) > 0


def test_what_a_killed_ingestor_did_not_tell_is_told_by_the_next(
    sensors: Sensors, instance: dg.DagsterInstance
) -> None:
    """It is written down with the batch."""
    telling(sensors).note(changed(sensors, 1))
    telling(sensors).tell()
    assert set(materialized(instance, asset_key(sensors.module.totals))) == {"2024-03-01"}
    assert not telling(sensors).due()


def test_a_dagster_that_is_down_is_told_later(sensors: Sensors, home: Path) -> None:
    """The problem is said, not raised."""
    home.mkdir(parents=True)
    (home / "dagster").write_text("in the way")
    told = telling(sensors)
    told.note(changed(sensors, 1))
    assert "Dagster could not be told" in str(told.tell())
    (home / "dagster").unlink()
    assert told.tell() is None
    with dg.DagsterInstance.get() as instance:
        assert set(materialized(instance, asset_key(sensors.module.readings))) == {"2024-03-01"}


def test_dagster_is_told_at_most_so_often(sensors: Sensors, home: Path) -> None:
    """However fast events come."""
    told = telling(sensors, every=3600)
    told.note(changed(sensors, 1))
    assert not told.due()
