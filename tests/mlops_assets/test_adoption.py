"""Feast's own template, and a repository with a SQL registry and odd shapes, adopted without running their code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.adoption import adopt, feast_repository, source_checks
from mlops_assets.adoption.online import Window, plain, range_of
from mlops_assets.adoption.registry import Column, UnfitNameError, UnreadableRegistryError, View, _message_class
from mlops_assets.adoption.repository import (
    BadConfigurationError,
    FeastRepository,
    NoRegistryError,
    NoRepositoryError,
    NoSnapshotError,
    UnreachableRegistryError,
)
from mlops_assets.adoption.source_checks import file_rows, fits
from mlops_assets.catalog import UnknownDeclarationError, gather_python
from mlops_assets.component import load_components
from tests.conftest import QUIET

NOW = datetime.now(UTC).replace(microsecond=0)
MAKE = """
import sys
from feast.cli.cli import cli
template, odd = sys.argv[1:]
cli(["init", template], standalone_mode=False)
for repository in (template + "/feature_repo", odd):  # apply changes to the directory
    cli(["-c", repository, "apply"], standalone_mode=False)
"""
STORES = """
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig

class ShopOfflineStoreConfig(DaskOfflineStoreConfig):
    type: str = "shop_stores.ShopOfflineStore"

class ShopOfflineStore(DaskOfflineStore):
    pass
"""
ODD = """
from datetime import timedelta
import pandas as pd
from feast import (
    Entity, FeatureService, FeatureView, Field, FileSource, KafkaSource, StreamFeatureView, ValueType
)
from feast.data_format import JsonFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Bool, Float32, Float64, Int64, UnixTimestamp

shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
visits = FileSource(
    name="visits", path="data/visits.parquet", timestamp_field="ts", field_mapping={"n": "visits", "shop": "shop_id"},
    owner="ops@example.org", tags={"cost centre": "a b", "tier": "gold"},
)
shop_visits = FeatureView(
    name="shop_visits", entities=[shop], ttl=timedelta(0), source=visits, owner="growth", description="Visits by shop.",
    schema=[
        Field(name="visits", dtype=Int64), Field(name="opened", dtype=UnixTimestamp),
        Field(name="open", dtype=Bool), Field(name="shares", dtype=Array(Float32)),
    ],
)
totals = FileSource(name="totals", path="data/totals.parquet", timestamp_field="ts")
site_totals = FeatureView(
    name="site_totals", entities=[], ttl=timedelta(days=2), source=totals, schema=[Field(name="visits", dtype=Float64)]
)

@on_demand_feature_view(sources=[shop_visits], schema=[Field(name="twice", dtype=Int64)])
def twice(inputs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame({"twice": inputs["visits"] * 2})

events = KafkaSource(
    name="visit_events", kafka_bootstrap_servers="kafka:9092", topic="visits", timestamp_field="ts",
    message_format=JsonFormat(schema_json="shop string, n long, ts timestamp"), batch_source=visits,
    field_mapping={"n": "visits", "shop": "shop_id"},
)
live_visits = StreamFeatureView(
    name="live_visits", entities=[shop], ttl=timedelta(0), source=events, schema=[Field(name="visits", dtype=Int64)]
)

ranking = FeatureService(name="ranking", features=[shop_visits[["visits"]], twice, site_totals])
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `trips` (Feast's template) and `odd`, made and applied by Feast's own command line."""
    root = tmp_path_factory.mktemp("feast-repositories")
    _write_odd(root / "odd")
    command = [sys.executable, "-W", "ignore", "-c", MAKE, "trips", str(root / "odd")]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return root


def _write_odd(root: Path) -> None:
    (root / "data").mkdir(parents=True)
    registry = {"registry_type": "sql", "path": f"sqlite:///{root}/data/registry.sqlite"}
    stores = {
        "offline_store": {"type": "shop_stores.ShopOfflineStore"},
        "online_store": {"type": "sqlite", "path": "data/online.db"},
    }
    told = {"project": "odd", "provider": "local", "registry": registry, **stores}
    (root / "feature_store.yaml").write_text(yaml.safe_dump({**told, "entity_key_serialization_version": 3}))
    (root / "shop_stores.py").write_text(STORES)
    (root / "features.py").write_text(ODD)
    _visits(NOW - timedelta(hours=2)).write_parquet(root / "data" / "visits.parquet")
    times = [(NOW - timedelta(hours=hours)).replace(tzinfo=None) for hours in (3, 1)]
    pl.DataFrame({"visits": [1.5, 2.5], "ts": times}).write_parquet(root / "data" / "totals.parquet")


def _visits(newest: datetime) -> pl.DataFrame:
    """Times without a zone, nulls, a list, and rows that are years old: the view has no ttl."""
    times = [newest - timedelta(days=500), newest, newest - timedelta(days=800)]
    return pl.DataFrame(
        {
            "shop": ["a", "a", "b"],
            "n": [1, 2, 3],
            "opened": [newest, newest, None],
            "open": [True, False, None],
            "shares": [[0.1, 0.2], [0.3], None],
            "ts": [time.replace(tzinfo=None) for time in times],
        }
    )


@pytest.fixture
def trips(made: Path, tmp_path: Path, home: Path) -> Path:
    """The template's repository, a copy for each test; nothing of it was materialized."""
    return Path(shutil.copytree(made / "trips" / "feature_repo", tmp_path / "trips"))


@pytest.fixture
def odd(made: Path, home: Path) -> Path:
    """The repository with a SQL registry, where it was made: its address is absolute."""
    return made / "odd"


def key(text: str) -> dg.AssetKey:
    return dg.AssetKey(text.split("/"))


def specs_of(defs: dg.Definitions) -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}


def deps_of(spec: dg.AssetSpec) -> set[str]:
    return {dep.asset_key.to_user_string() for dep in spec.deps}


def run(defs: dg.Definitions, *assets: str, config: Mapping[str, str] | None = None) -> dg.ExecuteInProcessResult:
    """Materialize online assets; of any other, run the checks."""
    keys = [key(name) for name in assets]
    selection = dg.AssetSelection.assets(*keys) if keys[0].path[1] == "online" else None
    job = dg.define_asset_job("adopted", selection=selection or dg.AssetSelection.checks_for_assets(*keys))
    wired = dg.Definitions.merge(defs, dg.Definitions(jobs=[job]))
    ops = {"ops": {name.replace("/", "__"): {"config": dict(config)} for name in assets}} if config else {}
    return executed(wired, "adopted", ops)


def executed(defs: dg.Definitions, job: str, config: Mapping[str, Any] | None = None) -> dg.ExecuteInProcessResult:
    instance = dg.DagsterInstance.ephemeral()
    resolved = defs.resolve_job_def(job)
    return resolved.execute_in_process({**QUIET, **(config or {})}, instance=instance, raise_on_error=False)


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def trouble(result: dg.ExecuteInProcessResult) -> str:
    errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
    return "\n".join(error.to_string() for error in errors if error)


def online_facts(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (event,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in event.materialization.metadata.items()}


# -- loading


def test_definitions_load_without_feast_and_without_the_repositorys_code(trips: Path):
    """A code location starts in the time of Dagster, and a repository that would break it is not run."""
    (trips / "feature_definitions.py").write_text("raise SystemExit('ran')")
    code = (
        "import json, sys\nfrom mlops_assets.adoption import feast_repository\n"
        f"defs = feast_repository({str(trips)!r})\nspecs = defs.resolve_all_asset_specs()\n"
        "print(json.dumps([len(specs), sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, modules = json.loads(ran.stdout)
    assert count == 15
    assert not {"feast", "pandas", "polars", "dill", "feature_definitions", "trips"} & set(modules)


def test_lineage_leads_from_the_source_by_the_view_to_the_service(trips: Path):
    """Tables and columns; an on-demand view is of a view and of what a request says."""
    specs = specs_of(feast_repository(trips))
    assert deps_of(specs["trips/offline/driver_hourly_stats"]) == {"trips/source/driver_hourly_stats_source"}
    assert deps_of(specs["trips/online/driver_hourly_stats"]) == {"trips/offline/driver_hourly_stats"}
    assert deps_of(specs["trips/on_demand/transformed_conv_rate"]) == {
        "trips/offline/driver_hourly_stats",
        "trips/source/vals_to_add",
    }
    assert deps_of(specs["trips/service/driver_activity_v1"]) == {
        "trips/offline/driver_hourly_stats",
        "trips/on_demand/transformed_conv_rate",
    }
    assert deps_of(specs["trips/source/driver_stats_push_source"]) == {"trips/source/driver_hourly_stats_source"}
    served = specs["trips/service/driver_activity_v1"].metadata["dagster/column_lineage"].deps_by_column
    assert [(dep.asset_key, dep.column_name) for dep in served["conv_rate"]] == [
        (key("trips/offline/driver_hourly_stats"), "conv_rate")
    ]
    stored = specs["trips/offline/driver_hourly_stats"].metadata["dagster/column_lineage"].deps_by_column
    assert [(dep.asset_key, dep.column_name) for dep in stored["driver_id"]] == [
        (key("trips/source/driver_hourly_stats_source"), "driver_id")
    ]


def test_what_the_registry_says_is_on_the_assets(trips: Path):
    spec = specs_of(feast_repository(trips, owners=["team:rides"]))["trips/offline/driver_hourly_stats"]
    columns = {column.name: column for column in spec.metadata["dagster/column_schema"].columns}
    assert columns["avg_daily_trips"].type == "INT64"
    assert columns["avg_daily_trips"].description == "Average daily trips"
    assert next(iter(columns)) == "driver_id"
    assert spec.metadata["feast/ttl"] == "1 day, 0:00:00" and spec.metadata["feast/entities"] == "driver"
    assert spec.tags["team"] == "driver_performance" and "feast" in spec.kinds
    assert spec.owners == ["team:rides"] and spec.group_name == "trips_features" and spec.description


def test_a_selection_brings_what_it_is_made_from_and_no_other(trips: Path):
    specs = specs_of(feast_repository(trips, views=["transformed_conv_rate"]))
    assert set(specs) == {
        "trips/source/driver_hourly_stats_source",
        "trips/source/vals_to_add",
        "trips/offline/driver_hourly_stats",
        "trips/online/driver_hourly_stats",
        "trips/on_demand/transformed_conv_rate",
        "trips/service/driver_activity_v1",
        "trips/service/driver_activity_v2",
    }


def test_a_component_says_the_same_in_yaml(trips: Path, monkeypatch: pytest.MonkeyPatch):
    """Its path is relative to its own folder."""
    folder = trips.parent / "adopted_yaml" / "rides" / "trips"
    folder.mkdir(parents=True)
    package = ModuleType("adopted_yaml")
    package.__path__, package.__file__ = [str(trips.parent / "adopted_yaml")], None
    monkeypatch.setitem(sys.modules, "adopted_yaml", package)
    words = {"path": "../../../trips", "owners": ["team:rides"], "cron": "0 * * * *"}
    kind = "mlops_assets.adoption.FeastRepositoryComponent"
    (folder / "defs.yaml").write_text(yaml.safe_dump({"type": kind, "attributes": words}))
    _, (defs,) = load_components([(package, folder / "defs.yaml")], gather_python())
    written = specs_of(defs)
    assert written.keys() == specs_of(feast_repository(trips)).keys()
    conditions = {name for name, spec in written.items() if spec.automation_condition}
    assert conditions == {"trips/online/driver_hourly_stats", "trips/online/driver_hourly_stats_fresh"}


# -- running


def test_online_assets_are_what_plain_feast_answers(trips: Path):
    """Materialized by Feast, checked against the file, read back with the template's on-demand transform.

    The next run begins where this one ended; a row that comes late, before that, is told by the check.
    """
    from feast import FeatureStore

    name = "trips/online/driver_hourly_stats"
    first = run(feast_repository(trips), name)
    assert first.success, trouble(first)
    assert checks(first)["answers_newest_row"].passed
    assert checks(first)["answers_newest_row"].metadata["keys_read_back"].value == 5
    newest = _stats(trips).sort("event_timestamp").unique("driver_id", keep="last").sort("driver_id")
    drivers = newest["driver_id"].to_list()
    store = FeatureStore(repo_path=str(trips))
    rows = [{"driver_id": driver, "val_to_add": 1, "val_to_add_2": 2} for driver in drivers]
    service = store.get_feature_service("driver_activity_v1")
    answer = store.get_online_features(features=service, entity_rows=rows).to_dict()
    assert answer["conv_rate"] == newest["conv_rate"].to_list()
    assert answer["conv_rate_plus_val1"] == pytest.approx([rate + 1 for rate in answer["conv_rate"]])

    second = run(feast_repository(trips), name)
    assert online_facts(second)["feast/start"] == online_facts(first)["feast/end"]
    late = newest.head(1).with_columns(event_timestamp=pl.lit(NOW - timedelta(minutes=1)).dt.cast_time_unit("ns"))
    late = late.with_columns(conv_rate=pl.lit(7.0, pl.Float32), created=pl.lit(NOW.replace(tzinfo=None)))
    pl.concat([_stats(trips), late]).write_parquet(trips / "data" / "driver_stats.parquet")
    missed = run(feast_repository(trips), name)
    told = checks(missed)["answers_newest_row"]
    assert not told.passed and f"({drivers[0]},) conv_rate: " in (told.description or "") and not missed.success
    start = (NOW - timedelta(hours=1)).isoformat()
    assert run(feast_repository(trips), name, config={"start": start}).success


def _stats(trips: Path) -> pl.DataFrame:
    return pl.read_parquet(trips / "data" / "driver_stats.parquet")


def _doubled(stats: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([stats, stats.head(1).with_columns(acc_rate=pl.lit(9.0, pl.Float32))])


DAMAGES: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], dict[str, str]]] = {
    "none": (lambda stats: stats, {}),
    "a column is gone": (lambda stats: stats.drop("acc_rate"), {"schema_as_registered": "missing: acc_rate"}),
    "a number became text": (
        lambda stats: stats.with_columns(pl.col("avg_daily_trips").cast(pl.String)),
        {"schema_as_registered": "avg_daily_trips is String, registered as INT64"},
    ),
    "a key is null": (
        lambda stats: stats.with_columns(driver_id=pl.when(pl.int_range(pl.len()) > 2).then("driver_id")),
        {"keys_and_time_present": "driver_id: 3 nulls"},
    ),
    "two rows contradict each other": (_doubled, {"unique_key_and_time": "1 of ('driver_id', 'event_timestamp'"}),
    "nothing new came": (
        lambda stats: stats.with_columns(pl.col("event_timestamp").dt.offset_by("-3d")),
        {"newest_row_within_ttl": "the newest row is of"},
    ),
    "the time is gone": (
        lambda stats: stats.drop("event_timestamp"),
        {
            "schema_as_registered": "missing: event_timestamp",
            "keys_and_time_present": "column ['event_timestamp'] is missing",
            "unique_key_and_time": "column ['event_timestamp'] is missing",
            "newest_row_within_ttl": "column ['event_timestamp'] is missing",
            "reachable": "there is no time column 'event_timestamp'",
        },
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_source_fails_the_check_that_is_there_for_it(trips: Path, damage: str):
    """And no other; the template itself repeats a whole row, which contradicts nothing."""
    change, expected = DAMAGES[damage]
    change(_stats(trips)).write_parquet(trips / "data" / "driver_stats.parquet")
    told = checks(
        run(feast_repository(trips), "trips/source/driver_hourly_stats_source", "trips/offline/driver_hourly_stats")
    )
    assert len(told) == 5
    assert {name for name, check in told.items() if not check.passed} == set(expected)
    assert all(why in (told[name].description or "") for name, why in expected.items())
    assert told["newest_row_within_ttl"].severity == dg.AssetCheckSeverity.WARN


def test_what_fails_its_checks_is_not_brought_online(trips: Path):
    """The job of a repository: its checks come first, and what reads a source that failed them is left as it was."""
    defs = feast_repository(trips, views=["driver_hourly_stats"])
    _stats(trips).drop("acc_rate").write_parquet(trips / "data" / "driver_stats.parquet")
    ran = executed(defs, "trips__online")
    assert not ran.success and "schema_as_registered" in trouble(ran)
    assert ran.get_asset_materialization_events() == [] and "answers_newest_row" not in checks(ran)


@pytest.mark.parametrize("content", [None, b"not a Parquet file"])
def test_a_source_that_cannot_be_read_is_told_by_every_check(trips: Path, content: bytes | None):
    file = trips / "data" / "driver_stats.parquet"
    file.unlink() if content is None else file.write_bytes(content)
    assets = ("trips/source/driver_hourly_stats_source", "trips/offline/driver_hourly_stats")
    told = checks(run(feast_repository(trips), *assets))
    assert len(told) == 5 and not any(check.passed for check in told.values())
    assert all(
        "'driver_hourly_stats_source' (file data/driver_stats.parquet)" in str(c.description) for c in told.values()
    )


def test_definitions_that_the_registry_has_left_behind_are_refused(trips: Path):
    """Nothing is brought online under columns that no longer are what the graph shows."""
    from feast import FeatureStore

    before = feast_repository(trips)
    store = FeatureStore(repo_path=str(trips))
    view = store.get_feature_view("driver_hourly_stats")
    view.features = view.features[:2]
    store.registry.apply_feature_view(view, "trips")
    refused = run(before, "trips/online/driver_hourly_stats")
    assert "now has the features conv_rate, acc_rate" in trouble(refused) and "Reload the code" in trouble(refused)
    store.registry.delete_feature_view("driver_hourly_stats", "trips")
    assert "is no longer registered" in trouble(run(before, "trips/online/driver_hourly_stats"))


# -- a registry that is no file


def test_a_registry_that_only_feast_can_ask_is_read_from_its_snapshot(odd: Path):
    """Asked once by `adopt`; then mapped columns, a view without entities, and old rows without a ttl come online.

    A registry that cannot be reached leaves the snapshot as it was.
    """
    with pytest.raises(NoSnapshotError, match=rf"it is sql over sqlite.*Run: mlops features adopt {odd}"):
        feast_repository(odd)
    assert "3 data sources, 4 feature views (3 of them online), 1 feature services" in adopt(odd)
    defs = feast_repository(odd)
    specs = specs_of(defs)
    assert specs["odd/offline/shop_visits"].owners == ["team:growth"]
    assert specs["odd/source/visits"].owners == ["ops@example.org"]
    assert "cost centre" not in specs["odd/source/visits"].tags and specs["odd/source/visits"].tags["tier"] == "gold"
    assert specs["odd/source/visits"].metadata["feast/tags"] == {"cost centre": "a b", "tier": "gold"}
    stored = specs["odd/offline/shop_visits"].metadata["dagster/column_lineage"].deps_by_column
    assert {name: dep.column_name for name, (dep,) in stored.items()}["visits"] == "n"
    served = specs["odd/service/ranking"].metadata["dagster/column_lineage"].deps_by_column
    assert set(served) == {"shop_visits__visits", "twice", "site_totals__visits"}

    assert deps_of(specs["odd/offline/live_visits"]) == {"odd/source/visits", "odd/source/visit_events"}
    assert specs["odd/source/visit_events"].metadata["feast/location"] == "visits"
    assert "kafka" in specs["odd/source/visit_events"].kinds

    for name in ("shop_visits", "live_visits", "site_totals"):
        ran = run(defs, f"odd/online/{name}")
        assert ran.success, trouble(ran)
        assert checks(ran)["answers_newest_row"].metadata["keys_read_back"].value == (1 if name == "site_totals" else 2)
        judged = checks(run(defs, f"odd/offline/{name}"))
        assert len(judged) == 4 and all(check.passed for check in judged.values()), judged
    _asked_through_feast_the_rows_are_the_same(odd)
    with FeastRepository.at(odd).store() as store:
        answer = store.get_online_features(
            features=["shop_visits:visits", "twice:twice"], entity_rows=[{"shop_id": "a"}]
        )
        assert answer.to_dict() == {"shop_id": ["a"], "visits": [2], "twice": [4]}

    snapshot = FeastRepository.at(odd).snapshot
    known = snapshot.read_bytes()
    database = odd / "data" / "registry.sqlite"
    hidden = database.rename(database.with_name("hidden"))
    database.mkdir()
    with pytest.raises(
        UnreachableRegistryError, match=r"(?s)sql over sqlite\).*unable to open database file"
    ) as refused:
        adopt(odd)
    database.rmdir()
    hidden.rename(database)
    assert "registry.sqlite" not in str(refused.value), "an address may hold a password"
    assert snapshot.read_bytes() == known and list(snapshot.parent.glob(".*")) == []


def _asked_through_feast_the_rows_are_the_same(root: Path) -> None:
    """What a table of any other kind than a file goes through: the repository's own offline store."""
    repository = FeastRepository.at(root)
    known = repository.read()
    for view in (known.views["shop_visits"], known.views["site_totals"]):
        source = known.sources[view.batch]
        asked = source_checks._asked_rows(repository, view, source)
        assert all(claim.passed for claim in source_checks.view_claims(asked, view, source, NOW))
        ways = [source_checks.newest_rows(rows, view, source, NOW) for rows in (asked, file_rows(repository, source))]
        by = [column.name for column in view.keys]
        told = [frame.sort([*by, "visits"]).select(*by, "visits", "__event_timestamp").to_dicts() for frame in ways]
        assert told[0] == told[1]


def test_a_file_registry_needs_no_snapshot(trips: Path, home: Path):
    """What is applied shows at once."""
    assert "5 data sources, 5 feature views (2 of them online), 3 feature services" in adopt(trips)
    assert not (home / "adopted").exists()


# -- bad input


def test_a_folder_that_is_no_repository_says_where_one_is(made: Path, tmp_path: Path):
    with pytest.raises(NoRepositoryError, match=rf"There is one in {made}/trips/feature_repo; name that"):
        feast_repository(made / "trips")
    with pytest.raises(NoRepositoryError, match=r"it has no feature_store\.yaml\. feast init makes a new"):
        feast_repository(tmp_path)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("project: [", BadConfigurationError, "it is no YAML"),
        ("- project", BadConfigurationError, "it is not a mapping"),
        ("registry: data/registry.db", BadConfigurationError, "it names no project"),
        ("project: a/b", UnfitNameError, r"project 'a/b'.*Rename it"),
        ("{project: a, registry: [x]}", BadConfigurationError, "neither a path nor a mapping"),
        ("project: a", NoRegistryError, r"has no registry yet \(.*data/registry.db\). Run feast apply in"),
        ("{project: a, registry: 's3://bucket/registry.db'}", NoSnapshotError, "it is file over s3"),
        (
            "{project: a, registry: {registry_type: remote, path: 'feast:6570'}}",
            NoSnapshotError,
            "is remote over feast",
        ),
    ],
)
def test_a_bad_configuration_is_refused_with_what_to_do(tmp_path: Path, home: Path, text: str, error: Any, says: str):
    (tmp_path / "feature_store.yaml").write_text(text)
    with pytest.raises(error, match=says):
        feast_repository(tmp_path)


def test_a_registry_that_is_none_or_anothers_is_refused(trips: Path):
    file, said = trips / "data" / "registry.db", (trips / "feature_store.yaml").read_text()
    (trips / "feature_store.yaml").write_text(said.replace("project: trips", "project: tips"))
    with pytest.raises(UnreadableRegistryError, match=r"holds no project 'tips' \(it has: trips\). Run feast apply"):
        feast_repository(trips)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UnreadableRegistryError, match=r"registry\.db is no Feast registry to read"):
        feast_repository(trips)


def test_an_unknown_view_is_refused_by_its_name(trips: Path):
    with pytest.raises(UnknownDeclarationError, match=r"no feature view 'driver_hourly_stat'.*Did you mean"):
        feast_repository(trips, views=["driver_hourly_stat"])


def test_a_name_that_no_key_can_have_is_refused(trips: Path):
    file = trips / "data" / "registry.db"
    registry = _message_class().FromString(file.read_bytes())
    registry.feature_views[0].spec.name = "driver stats/hourly"
    file.write_bytes(registry.SerializeToString())
    with pytest.raises(UnfitNameError, match=r"feature view 'driver stats/hourly'.*run feast apply"):
        feast_repository(trips)


# -- laws

VIEW = View("visits", "batch", ("shop",), (Column("shop", "STRING"),), (Column("n", "INT64"),), ttl=timedelta(days=1))
moments = st.integers(1_577_836_800, 1_893_456_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


@given(last=moments, now=moments)
def test_runs_leave_no_gap_and_never_go_back(last: datetime, now: datetime):
    """Each begins where the one before ended; one that asks for less than is there does nothing."""
    wanted = range_of(Window(), last, VIEW, now)
    assert wanted.start == last and (wanted.done if now <= last else (wanted.end == now and not wanted.done))


@given(now=moments)
def test_the_first_run_brings_all_that_is_still_served(now: datetime):
    assert range_of(Window(), None, VIEW, now).start == now - timedelta(days=1)
    assert range_of(Window(), None, replace(VIEW, ttl=None), now).start.year == 1970
    end = (now - timedelta(days=9)).isoformat()
    assert range_of(Window(end=end), None, VIEW, now).start == now - timedelta(days=10)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (Window(start="yesterday"), "start is 'yesterday', no ISO time"),
        (Window(end="2026-04-01T00:00:00"), "end is '2026-04-01T00:00:00', a time without a zone"),
        (Window(start="2026-04-02T00:00:00Z", end="2026-04-01T00:00:00Z"), "is not before end"),
    ],
)
def test_a_window_that_is_none_is_refused(window: Window, says: str):
    with pytest.raises(dg.Failure, match=says):
        range_of(window, None, VIEW, NOW)


@pytest.mark.parametrize(
    ("given", "registered", "fit"),
    [
        (pl.Int32(), "INT64", True),
        (pl.Float64(), "INT64", False),
        (pl.Int64(), "DOUBLE", True),
        (pl.String(), "DOUBLE", False),
        (pl.Null(), "STRING", True),
        (pl.Int64(), "STRING", False),
        (pl.List(pl.Float64()), "FLOAT_LIST", True),
        (pl.List(pl.String()), "FLOAT_LIST", False),
        (pl.Float64(), "FLOAT_LIST", False),
        (pl.Array(pl.Int64(), 3), "INT64_SET", True),
        (pl.Datetime("us"), "UNIX_TIMESTAMP", True),
        (pl.Struct({"a": pl.Int64()}), "MAP", True),
        (pl.String(), "JSON", True),
        (pl.Int64(), "A_TYPE_OF_TOMORROW", True),
    ],
)
def test_a_type_fits_when_feast_need_not_guess(given: pl.DataType, registered: str, fit: bool):
    assert fits(given, registered) is fit


@pytest.mark.parametrize(
    ("one", "other", "kind", "same"),
    [
        (0.1, 0.10000000149011612, "FLOAT", True),
        (0.1, 0.10000000149011612, "DOUBLE", False),
        (float("nan"), None, "DOUBLE", True),
        (0.0, None, "DOUBLE", False),
        ('{"a": [1]}', '{"a":[1]}', "JSON", True),
        (NOW, NOW.replace(tzinfo=None), "UNIX_TIMESTAMP", True),
        (NOW, NOW + timedelta(hours=1), "UNIX_TIMESTAMP", False),
        ([1, 2], [2, 1], "INT64_LIST", False),
        ([1, 2], [2, 1], "INT64_SET", True),
    ],
)
def test_values_are_compared_by_what_feast_can_hold(one: Any, other: Any, kind: str, same: bool):
    assert (plain(one, kind) == plain(other, kind)) is same
