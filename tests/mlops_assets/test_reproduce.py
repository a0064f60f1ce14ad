"""A version made again is the very same, or the report names what differs: a partition, a package, a declaration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from mlops_assets import manifest
from mlops_assets import reproduce as module
from mlops_assets.cli import app
from mlops_assets.links import spec
from mlops_assets.records import Records
from mlops_assets.reproduce import Item, Recorded, Reproduction, differences, reproduce, told
from mlops_assets.search import journalled
from resources.hardware import this_machine

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Platform

WEATHER, DAY = dg.AssetKey(["flights", "offline", "weather_hourly"]), "2013-06-20"


def records_of(platform: Platform) -> Records:
    from mlops_assets.serving.prediction_log import PredictionLog

    stores = platform.resources
    asked = [stores[name] for name in ("releases", "bentos", "mlflow")]
    return Records(platform.catalog, stores["lake"], PredictionLog(), *asked, platform.instance)


def made_again(platform: Platform, version: str = "1") -> Reproduction:
    return reproduce(platform.model, version, records_of(platform))


def item(found: Reproduction, what: str) -> Item:
    (one,) = [item for item in found.items if item.what == what]
    return one


@pytest.fixture(scope="module")
def again(module_platform: Platform) -> tuple[Reproduction, dict[str, Any], dict[str, Any]]:
    """The first champion made again where it was made, and what was published before and after."""
    before = module_platform.published
    return made_again(module_platform), before, module_platform.published


def test_the_same_machine_makes_the_same_model(again: Any) -> None:
    """Rows, trials, parameters, predictions, metrics and every file of the model are equal."""
    found, _, _ = again
    assert found.equal and [one for one in found.items if one.equal is False] == []
    names = {one.what for one in found.items}
    assert {"training set", "trials", "parameters", "golden predictions", "holdout metrics"} <= names
    assert "device" in names
    assert {"model file model.ubj", "model file serving.onnx", "declaration", "package ..."} <= names
    assert "apart by 0 at most" in item(found, "golden predictions").why
    assert json.loads(json.dumps(found.document(), default=str))["equal"] is True


def test_nothing_is_published_or_left(again: Any, module_platform: Platform) -> None:
    """No version, no MLflow run, no Dagster event, no scratch directory."""
    _, before, after = again
    assert before == after and len(module_platform.mlflow_runs()) == 1
    assert not list((module_platform.home / "work" / "training").iterdir())


def test_a_corrected_partition_is_named(platform: Platform) -> None:
    """The report says which partition changed, how many rows and of which columns; the model is another one."""
    lake = platform.resources["lake"]
    lake.write(lake.scan(WEATHER, [DAY]).with_columns(pl.col("temp") + 20), WEATHER, DAY)
    corrected = dg.AssetMaterialization(WEATHER, partition=DAY, tags={"dagster/data_version": "corrected"})
    platform.instance.report_runless_asset_event(corrected)
    found = made_again(platform)
    rows = item(found, "training set")
    assert not found.equal and rows.equal is False
    assert "flights/offline/weather_hourly changed in 2013-06-20;" in rows.why and " rows differ, in temp (" in rows.why
    assert item(found, "model file model.ubj").equal is False


def test_another_device_is_named_and_what_is_here_is_used(module_platform: Platform) -> None:
    """A version of a GPU that this machine lacks is made again on what it has; one of no known device says so."""
    bundle = module_platform.promotion.mlflow.download(module_platform.model.registered_name, "1")
    known = Recorded.of(bundle)
    gpu = {"kind": "cuda", "name": "NVIDIA H200", "memory_gb": 139.8}
    cpu = f"cpu: {this_machine().chip}"
    if "cuda" not in this_machine().devices:
        kind, said = module.device(Recorded(bundle, {**known.manifest, "device": gpu}, {}), known.record["arguments"])
        assert (kind, said.equal, said.recorded, said.now) == ("cpu", False, "cuda: NVIDIA H200", cpu)
        assert "summed otherwise" in said.why and "'cuda' is required" in said.why
    older = {name: value for name, value in known.manifest.items() if name != "device"}
    kind, said = module.device(Recorded(bundle, older, {}), known.record["arguments"])
    assert (kind, said.equal, said.now) == ("cpu", None, cpu)
    kind, said = module.device(known, known.record["arguments"])
    assert (kind, said.equal, said.why) == ("cpu", True, "")


def test_another_package_version_is_named(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it makes no difference to the model."""
    version = manifest._version
    monkeypatch.setattr(manifest, "_version", lambda name: "0.1" if name == "xgboost" else version(name))
    found = made_again(platform)
    package = item(found, "package xgboost")
    assert (package.equal, package.now) == (False, "0.1") and package.recorded == version("xgboost")
    assert found.equal


def test_a_changed_declaration_is_named_and_the_recorded_one_is_used(platform: Platform) -> None:
    """Another trainer today does not hinder the version of yesterday from being made again."""
    from mlops_assets.trainers import LightGBMClassifier

    found = made_again(platform.declared(trainer=LightGBMClassifier()))
    declared = item(found, "declaration")
    assert declared.equal is False and "trainer changed; the recorded ones are used" in declared.why
    assert found.equal


def test_rows_that_are_gone_are_named(platform: Platform) -> None:
    """Without its tables a version cannot be made again: the report says so, and claims nothing."""
    for path in (platform.home / "lake" / "flights" / "offline" / "weather_hourly").glob("*.parquet"):
        path.unlink()
    found = made_again(platform)
    assert not found.equal and item(found, "training set").equal is None
    assert any("flights/offline/weather_hourly" in remark for remark in found.remarks)


def test_an_older_version_is_told_so(platform: Platform) -> None:
    """One without a record says what cannot be told, and nothing that was not recorded is called equal."""
    bundle = platform.promotion.mlflow.download(platform.model.registered_name, "1")
    recorded = Recorded(bundle, json.loads((bundle / "manifest.json").read_text()), {})
    items = [*module.environment(recorded), *module.declaration(platform.model, {}, recorded)]
    unknown = {one.what for one in items if one.equal is None}
    assert {"training code", "declaration", "code version of ..."} <= unknown


def test_an_unknown_version_says_which_exist(platform: Platform) -> None:
    """The error names the known ones."""
    from resources.mlflow import UnknownModelVersionError

    with pytest.raises(UnknownModelVersionError, match=r"no version '9' \(known: 1"):
        made_again(platform, "9")


def test_the_command_exits_by_what_it_found(platform: Platform) -> None:
    """0 for the very same model, though the declaration of today is another; its JSON holds every item."""
    ran = CliRunner().invoke(app, ["reproduce", platform.model.id, "1", "--json"])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout)
    assert document["equal"] and {"what", "equal", "recorded", "now", "why"} == set(document["items"][0])
    lake = platform.resources["lake"]
    lake.write(lake.scan(WEATHER, [DAY]).with_columns(pl.col("temp") + 20), WEATHER, DAY)
    ran = CliRunner().invoke(app, ["reproduce", platform.model.id, "1"])
    assert ran.exit_code == 1 and "The model is another one." in ran.stdout


def test_differences_of_rows_are_counted_by_column() -> None:
    """By key: rows gone, rows new, rows that changed, nulls equal to nulls."""
    before = pl.DataFrame({"id": ["a", "b", "c"], "x": [1.0, None, 3.0], "y": [1, 2, 3]})
    now = pl.DataFrame({"id": ["c", "a", "d"], "x": [4.0, 1.0, 5.0], "y": [3, 1, 9], "z": [0, 0, 0]})
    found = differences(before, now, "id")
    assert found == {"only_before": 1, "only_now": 1, "rows": 1, "columns": {"x": 1}, "columns_in_one": ["z"]}
    assert told(found) == "1 rows differ, in x (1), 1 rows are gone, 1 rows are new, columns z are in one of them"
    same = differences(before, before.reverse(), "id")
    assert told(same) == "the same rows in another order or of other types"


def test_half_a_line_of_a_journal_is_not_a_trial(tmp_path: Path) -> None:
    """A search that was killed while it wrote down a trial runs that one again."""
    journal = tmp_path / "trials.jsonl"
    journal.write_text('{"number": 0}\n{"number": 1, "par')
    assert journalled(journal) == [{"number": 0}] and journalled(tmp_path / "none") == []


def test_the_training_set_of_the_record_is_the_one_that_was_trained_on(platform: Platform) -> None:
    """Its upstream holds the version of every partition that was joined."""
    bundle = platform.promotion.mlflow.download(platform.model.registered_name, "1")
    upstream = json.loads((bundle / "record.json").read_text())["upstream"]
    assert set(upstream["flights/offline/weather_hourly"]) == set(platform.resources["lake"].partitions(WEATHER))
    assert spec.link_key(platform.model, "training_set").to_user_string() not in upstream
