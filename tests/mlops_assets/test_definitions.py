"""The code location: light to load, accepted by Dagster's own check, and every definition in it told in words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_spec import AssetCheckSpec

from mlops_assets import Resources
from mlops_assets.catalog import asset_key
from mlops_assets.claims import columns_of, time_of
from mlops_assets.definitions import catalog, defs
from mlops_assets.links import candidate
from mlops_assets.links.spec import declared_version
from mlops_assets.pipeline import TRAINING_LINKS
from mlops_assets.trainers import TorchRegressor
from resources.environment import PROJECT
from sensors.thermal import thermal_sensor

HEAVY = {
    "bentoml",
    "boto3",
    "botocore",
    "catboost",
    "duckdb",
    "evidently",
    "fastapi",
    "feast",
    "httpx",
    "ibis",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "mlx",
    "numpy",
    "onnxruntime",
    "optuna",
    "pandas",
    "psutil",
    "psycopg2",
    "pyarrow",
    "pyspark",
    "redis",
    "rich",
    "s3fs",
    "scipy",
    "sklearn",
    "skops",
    "sqlalchemy",
    "torch",
    "typer",
    "uvicorn",
    "xgboost",
}
LOAD = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import mlops_assets.definitions
told = [f"{item.filename}:{item.lineno}: {item.category.__name__}: {item.message}" for item in seen]
print(json.dumps({"modules": sorted({name.partition(".")[0] for name in sys.modules}), "warnings": told}))
"""
SPECS = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
GRAPH = defs.resolve_asset_graph()
CHECKS: dict[str, AssetCheckSpec] = {
    f"{key.asset_key.to_user_string()}:{key.name}": GRAPH.get_check_spec(key) for key in GRAPH.asset_check_keys
}
TABLES = {asset_key(item).to_user_string(): item for item in catalog.tables.values()}
STAND_INS = [view.stand_in for view in catalog.views if view.stand_in]
STAGES = {"sources", "features", "online", "snapshot", "labels"}
LINKS = {*TRAINING_LINKS, "predictions", "scores", "quality_report", "drift_report", "performance_report"}
TABULAR = {*STAGES, "training_set", "predictions", "scores"}
every_asset = pytest.mark.parametrize("key", sorted(SPECS))
every_view = pytest.mark.parametrize("view", catalog.views, ids=lambda view: view.id)


def stage(key: str) -> str:
    return SPECS[key].tags["stage"]


def run(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "MLOPS_HOME": str(home), "MLOPS_ENV": "test", "DAGSTER_HOME": str(home)}
    env.pop("PYTHONWARNINGS", None)
    return subprocess.run(words, capture_output=True, text=True, cwd=PROJECT, env=env, timeout=240, check=False)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A fresh process that loaded the definitions and did nothing else: its modules, and the warnings on the way."""
    ran = run(sys.executable, "-c", LOAD, home=tmp_path_factory.mktemp("home"))
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


def test_loading_imports_no_heavy_library(loaded: dict[str, list[str]]):
    """The UI, the daemon and every run load the definitions; each library is imported in the function that uses it."""
    assert "dagster" in loaded["modules"]
    assert HEAVY & set(loaded["modules"]) == set()


def test_loading_warns_of_nothing_of_ours(loaded: dict[str, list[str]]):
    """No deprecated call of ours, and no warning that a user would have to read past."""
    ours = [
        line
        for line in loaded["warnings"]
        if Path(line.partition(":")[0]).is_relative_to(PROJECT) and ".venv" not in line
    ]
    assert ours == []


def test_the_serving_process_knows_neither_dagster_nor_feast(tmp_path: Path):
    """An endpoint starts in about the time of BentoML and carries nothing of the platform's."""
    told = "import sys, mlops_assets.serving.service; print(*{name.partition('.')[0] for name in sys.modules})"
    ran = run(sys.executable, "-c", told, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    modules = set(ran.stdout.split())
    assert "bentoml" in modules
    unwanted = {
        "dagster",
        "feast",
        "mlflow",
        "evidently",
        "sklearn",
        "optuna",
        "feature_assets",
        "model_assets",
        "sensors",
    }
    assert modules & unwanted == set()


def test_dagsters_own_check_passes_without_a_warning_of_ours(tmp_path: Path):
    """`dg check defs` loads the location as a deployment would."""
    ran = run(str(Path(sys.executable).with_name("dg")), "check", "defs", home=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "All definitions loaded successfully" in ran.stdout
    assert not re.findall(rf"{PROJECT}/(?!\.venv).*Warning.*", ran.stdout + ran.stderr)


# -- every asset ----------------------------------------------------------------------------------------


@every_asset
def test_an_asset_can_be_understood_from_the_ui(key: str):
    """What it is, whose it is, where it belongs, what made it and in which version."""
    spec = SPECS[key]
    team, *_ = spec.key.path
    assert spec.description and len(spec.description) > 20 and spec.description.endswith(".")
    assert spec.tags["team"] == team
    assert stage(key) in STAGES | LINKS
    owner_of_group = f"{team}_{spec.tags['model']}" if stage(key) in LINKS else f"{team}_{stage(key)}"
    assert spec.group_name == owner_of_group
    assert spec.owners and all(owner.startswith("team:") or "@" in owner for owner in spec.owners)
    assert spec.kinds and spec.code_version


@every_asset
def test_a_key_is_the_team_and_what_is_published(key: str):
    """`<team>/<table>`, `<team>/{offline,online,snapshot}/<view>`, `<team>/<model>/<link>`; nothing else.

    Dagster's graph shows the last part alone: it must say what the asset is.
    """
    team, *place, name = SPECS[key].key.path
    if stage(key) in ("sources", "labels"):
        assert not place and f"{team}/{name}" in catalog.tables
    elif stage(key) in ("features", "online", "snapshot"):
        assert place == ["offline" if stage(key) == "features" else stage(key)] and catalog.view(f"{team}/{name}")
    else:
        assert name == stage(key) and catalog.model(f"{team}/{place[0]}") and len(place) == 1


@every_asset
def test_a_table_says_what_each_column_means(key: str):
    """Every column has a type and a meaning; an asset that is no table has no schema."""
    schema = SPECS[key].metadata.get("dagster/column_schema")
    assert (schema is not None) == (stage(key) in TABULAR)
    columns = schema.columns if isinstance(schema, dg.TableSchema) else schema.value.columns if schema else []
    assert [column.name for column in columns if not (column.description and column.type)] == []


@every_asset
def test_partitions_are_as_designed(key: str):
    """Tables and monitoring by the declared days, training by cutoffs; what there is one of is not partitioned."""
    spec = SPECS[key]
    if stage(key) in ("training_set", "candidate"):
        assert spec.partitions_def == catalog.model("/".join(spec.key.path[:2])).cutoffs
    elif stage(key) in ("champion", "bento", "endpoint", "online", "snapshot"):
        assert spec.partitions_def is None
    elif stage(key) in LINKS:
        assert spec.partitions_def == catalog.model("/".join(spec.key.path[:2])).labels.partitions
    else:
        assert spec.partitions_def == TABLES[key].partitions


def trained_at_each_cutoff(key: str) -> bool:
    """Is it the training set of a model that is trained at each cutoff, whether there is a cause or not?"""
    if stage(key) != "training_set":
        return False
    return catalog.model("/".join(SPECS[key].key.path[:2])).trained == "at each cutoff"


@every_asset
def test_what_ages_has_a_freshness_policy(key: str):
    """What is expected every day or at every cutoff is seen to be late; what changes when it must is not."""
    daily = key in TABLES and bool(TABLES[key].partitions)
    ages = stage(key) in ("online", "predictions") or daily or trained_at_each_cutoff(key)
    assert bool(SPECS[key].freshness_policy) == ages


@every_asset
def test_what_follows_by_itself(key: str):
    """Sources are filled from outside, snapshots on demand; all else has a condition, named for the UI."""
    expected = {
        "sources": None,
        "scores": "on_recent_arrival",
        "snapshot": None,
        "training_set": "at_each_cutoff" if trained_at_each_cutoff(key) else None,
        "predictions": "after_midnight",
        "quality_report": "on_recent_arrival",
        "drift_report": "on_recent_arrival",
        "performance_report": "on_recent_arrival",
        "features": "on_whole_window",
        "labels": "on_whole_window",
    }
    condition = SPECS[key].automation_condition
    assert (condition.get_label() if condition else None) == expected.get(stage(key), "on_arrival")


@pytest.mark.parametrize("key", sorted(TABLES))
def test_a_table_carries_its_declaration(key: str):
    """The declared columns in their order, the time column that splits it, and the file to open."""
    spec, table = SPECS[key], TABLES[key]
    schema: Any = spec.metadata["dagster/column_schema"]
    assert [column.name for column in schema.columns] == list(columns_of(table))
    assert spec.metadata["partition_column"] == time_of(table)
    assert spec.description == table.description
    (place,) = spec.metadata["dagster/code_references"].code_references
    made_in = PROJECT / ("mlops_assets" if table in STAND_INS else "feature_assets")
    assert Path(place.file_path).is_relative_to(made_in) and place.line_number > 1


def test_trainings_on_a_gpu_wait_for_gpus_alone():
    """What needs a GPU, by its accelerator or its resources, stands in a pool of its own, which heat lowers as well."""
    model = catalog.models["flights/arrival_delay"]
    torch = model.with_(trainer=TorchRegressor())
    assert (candidate.pool(model), candidate.pool(torch)) == ("training", "training")
    assert candidate.pool(torch.with_(accelerator="cuda")) == "gpu"
    assert candidate.pool(model.with_(resources=Resources(gpus=1))) == "gpu"
    assert candidate.candidate_asset(torch.with_(accelerator="mps")).op.pool == "gpu"
    assert {thermal_sensor(time.time, pool=pool).name for pool in ("training", "gpu")} == {"thermal", "thermal_gpu"}


@pytest.mark.parametrize("model", catalog.models.values(), ids=lambda model: model.id)
def test_every_model_has_the_whole_chain_and_its_pools(model):
    """One at a time where two would be wrong: training on one machine, promotion of one model."""
    found = {key.path[-1]: GRAPH.get(key) for key in map(dg.AssetKey, ([*model.id.split("/"), link] for link in LINKS))}
    pools = {link: node.pools for link, node in found.items() if node.pools}
    promotion = {f"promotion_{model.team}_{model.name}"}
    assert pools == {"candidate": {"training"}, "champion": promotion, "endpoint": promotion}
    chain = [dg.AssetKey([*model.id.split("/"), link]) for link in TRAINING_LINKS]
    assert all(one in GRAPH.get(other).parent_keys for one, other in pairwise(chain))
    views = [view for item in model.selections for view in (item.view, item.view.stand_in) if view]
    online = {dg.AssetKey([view.team, "online", view.name]) for view in views}
    assert found["predictions"].parent_keys == {chain[-1], *online}, "an answer stands on the release and its features"


def test_a_links_code_version_follows_its_declaration():
    """Another trainer makes another candidate, not another training set; another feature makes both."""
    model = catalog.model("flights/late_arrival")
    fewer = model.with_(features=model.selections[:-1], gate=model.gate)
    assert declared_version(model) != declared_version(fewer)
    assert declared_version(model, model.trainer) != declared_version(model, type(model.trainer)(n_estimators=7))
    assert declared_version(model, model.search) == declared_version(model.with_(), model.search)


# -- checks, jobs, sensors, feature views ---------------------------------------------------------------------


@pytest.mark.parametrize("check", sorted(CHECKS))
def test_a_check_is_a_claim_in_words(check: str):
    """It says what holds when it passes."""
    spec = CHECKS[check]
    assert spec.description and len(spec.description.split()) >= 3
    assert re.fullmatch(r"[a-z][a-z0-9_]*", spec.name)


@every_asset
def test_what_must_not_go_on_is_blocking(key: str):
    """A gate, a broken table, a leak or a Bento that answers otherwise stop what is downstream; monitoring tells."""
    of_tables = {"unique_key", "in_bounds", "null_share"}
    blocking = {
        "sources": of_tables,
        "features": of_tables,
        "labels": of_tables,
        "online": {"newest_row_present"},
        "training_set": {"point_in_time_proof", "nothing_after_the_cutoff"},
        "candidate": {"clears_floor", "beats_champion", "worst_slice", "latency"},
        "champion": {"alias_is_newest_passed"},
        "bento": {"golden_parity", "feature_parity"},
        "endpoint": {"champion_released"},
        "scores": {"scored_all"},
    }
    found = {name.partition(":")[2]: spec for name, spec in CHECKS.items() if name.partition(":")[0] == key}
    assert found, "an asset without a check claims nothing"
    assert {name for name, spec in found.items() if spec.blocking} == blocking.get(stage(key), set())


def test_jobs_and_sensors_are_named_for_their_team_and_described():
    """One job fills a team's tables, one trains each model; three sensors a model, and the platform's own beside."""
    repository = defs.get_repository_def()
    names = {model.id.replace("/", "__") for model in catalog.models.values()}
    jobs = {job.name: job for job in repository.get_all_jobs() if not job.name.startswith("__")}
    of_upkeep = {"platform__tracking_archive", "platform__artifacts"}
    tables = {f"{table.team}__tables" for table in TABLES.values()}
    assert jobs.keys() == {*tables, *of_upkeep, *(f"{name}__train" for name in names)}
    sensors = {sensor.name: sensor for sensor in repository.sensor_defs}
    of_models = {f"{name}__{verb}" for name in names for verb in ("retrain", "rollout", "late_answers")}
    of_the_platform = {"automation", "events", "alerts", "run_failure", "run_recovered", "thermal", "tracking"}
    assert sensors.keys() == {*of_the_platform, "abandoned_work", *of_models}
    assert [item.name for item in (*jobs.values(), *sensors.values()) if not item.description] == []
    assert {sensor.default_status for sensor in sensors.values()} == {dg.DefaultSensorStatus.RUNNING}


@pytest.mark.parametrize("model", catalog.models.values(), ids=lambda model: model.id)
def test_a_training_job_is_partitioned_by_cutoff(model):
    """Its partitions are inferred; the retraining sensor asks for one of them."""
    job = defs.resolve_job_def(f"{model.team}__{model.name}__train")
    assert job.partitions_def == model.cutoffs


@every_view
def test_a_feature_view_can_be_used_without_asking_its_author(view):
    """Who it is about, how long a row holds, what each feature means, and the unit of each quantity."""
    if view not in STAND_INS:  # one row for everybody, until the next
        assert view.entities and all(entity.description for entity in view.entities)
        assert view.ttl is not None
    assert view.description
    assert [name for name, field in view.schema.items() if not field.description] == []
    numbers = {name: field for name, field in view.schema.items() if field.dtype in ("Int64", "Float64")}
    assert [name for name, field in numbers.items() if not field.unit] == []


def test_lineage_knows_which_column_an_input_comes_from():
    """From every input of a model to the column of the table that is read."""
    for model in catalog.models.values():
        lineage: Any = SPECS[f"{model.id}/training_set"].metadata["dagster/column_lineage"]
        assert {*model.inputs, model.label} <= lineage.deps_by_column.keys()
        for dependencies in lineage.deps_by_column.values():
            for dependency in dependencies:
                assert dependency.column_name in columns_of(TABLES[dependency.asset_key.to_user_string()])
