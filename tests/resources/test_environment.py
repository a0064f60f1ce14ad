"""One variable chooses the environment; what it lacks is said at once, by name, and never with a secret."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import polars as pl
import pytest
import yaml
from dagster._core.storage.compute_log_manager import ComputeIOType

from resources.compute import UnknownComputeError
from resources.compute_logs import S3ComputeLogs
from resources.database import database_url
from resources.environment import (
    MLFLOW,
    POSTGRES,
    PROJECT,
    REDIS,
    S3,
    SETTINGS,
    MissingSettingsError,
    UnknownEnvironmentError,
    environment,
    home,
    prepare_home,
    resources_for,
)
from resources.online.packed_store import online_store_url

ADDRESSES = {
    POSTGRES.variable: "postgresql+psycopg2://user:hunter2@db:5432/dagster",
    REDIS.variable: "redis://:hunter2@cache:6379/0",
    S3.variable: "s3://bucket/prefix",
    MLFLOW.variable: "http://mlflow:5000",
}


@pytest.fixture
def deployed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Production, with every address named."""
    monkeypatch.setenv("MLOPS_ENV", "production")
    for variable, address in ADDRESSES.items():
        monkeypatch.setenv(variable, address)
    return home


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance that `mlops up` uses, opened from the installed dagster.yaml."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    prepare_home()
    with dg.DagsterInstance.get() as opened:
        yield opened


def test_the_default_environment_is_local(monkeypatch: pytest.MonkeyPatch):
    """Without MLOPS_ENV a clone is its owner's own machine, with its state beside pyproject.toml."""
    monkeypatch.delenv("MLOPS_ENV", raising=False)
    monkeypatch.delenv("MLOPS_HOME", raising=False)
    assert environment() == "local"
    assert home() == PROJECT / ".mlops"


def test_an_unknown_environment_names_the_known_ones(monkeypatch: pytest.MonkeyPatch):
    """A typing error in MLOPS_ENV never falls back to another environment."""
    monkeypatch.setenv("MLOPS_ENV", "prod")
    with pytest.raises(UnknownEnvironmentError, match=r"'prod'.*local, test, staging, production"):
        resources_for()


def test_the_environment_names_the_compute_of_models_that_name_none(home: Path, monkeypatch: pytest.MonkeyPatch):
    """One word, and the process of the training is another; what is no kind is refused before any work."""
    monkeypatch.delenv("MLOPS_COMPUTE", raising=False)
    assert resources_for()["compute"].kind == "local"
    monkeypatch.setenv("MLOPS_COMPUTE", "subprocess")
    monkeypatch.setenv("MLOPS_COMPUTE_ADDRESS", "somewhere:1")
    compute = resources_for()["compute"]
    assert (compute.kind, compute.address) == ("subprocess", "somewhere:1")
    monkeypatch.setenv("MLOPS_COMPUTE", "kubernets")
    with pytest.raises(UnknownComputeError, match=r"'kubernets' \(known: .*kubernetes.*\)") as failure:
        resources_for()
    assert failure.value.__notes__ == ["MLOPS_COMPUTE names it."]


@pytest.mark.parametrize("name", ["staging", "production"])
def test_every_missing_address_is_named_at_once(name: str, monkeypatch: pytest.MonkeyPatch):
    """One run of it is enough to know all that is to be set, and how it looks."""
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    with pytest.raises(MissingSettingsError) as failure:
        resources_for(name)
    for setting in SETTINGS:
        assert f"{setting.variable}={setting.example}" in str(failure.value)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.variable)
@pytest.mark.parametrize("value", ["", "hunter2", "ftp://user:hunter2@host", "hunter2://"])
def test_an_address_of_another_form_is_refused_without_showing_it(
    deployed: Path, monkeypatch: pytest.MonkeyPatch, setting, value: str
):
    """Only the wrong variable is named, and nothing of what it or the others hold."""
    monkeypatch.setenv(setting.variable, value)
    with pytest.raises(MissingSettingsError) as failure:
        resources_for()
    named = {other.variable for other in SETTINGS if other.variable in str(failure.value)}
    assert named == {setting.variable}
    assert "hunter2" not in str(failure.value)


@pytest.mark.parametrize("setting", [S3, MLFLOW], ids=lambda setting: setting.variable)
def test_an_address_that_people_see_holds_no_password(deployed: Path, monkeypatch: pytest.MonkeyPatch, setting):
    """It is a link in the UI: credentials have variables of their own."""
    monkeypatch.setenv(setting.variable, setting.example.replace("://", "://user:hunter2@"))
    with pytest.raises(MissingSettingsError, match=setting.variable) as failure:
        resources_for()
    assert "hunter2" not in str(failure.value)


def test_a_process_is_asked_for_no_address_but_its_own(home: Path, monkeypatch: pytest.MonkeyPatch):
    """The web server knows the database and the object store; that it knows no Redis stops neither."""
    monkeypatch.setenv("MLOPS_ENV", "production")
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv(POSTGRES.variable, ADDRESSES[POSTGRES.variable])
    monkeypatch.setenv(S3.variable, ADDRESSES[S3.variable])
    assert database_url() == ADDRESSES[POSTGRES.variable]
    assert S3ComputeLogs.from_config_value(None, {"region": "us-east-1"}).local_manager
    monkeypatch.delenv(S3.variable)
    with pytest.raises(MissingSettingsError, match=S3.variable):
        S3ComputeLogs.from_config_value(None, {})


def test_every_environment_has_the_same_keys(deployed: Path):
    """The definitions are the same everywhere, and so each factory serves the same keys."""
    keys = {name: set(resources_for(name)) for name in ("local", "test", "staging", "production")}
    assert keys["local"] == keys["test"] == keys["staging"] == keys["production"]
    assert {"lake", "io_manager", "feast", "mlflow", "compute", "bentos", "releases", "champions", "alerts"} <= keys[
        "local"
    ]


def test_the_deployed_lake_is_the_named_one(deployed: Path, monkeypatch: pytest.MonkeyPatch):
    """MLOPS_S3_URL is where production's tables are, with or without a slash at its end."""
    for address in ("s3://bucket/prefix", "s3://bucket/prefix/"):
        monkeypatch.setenv(S3.variable, address)
        assert str(resources_for()["lake"].path("a/b")) == "s3://bucket/prefix/lake/a/b/all.parquet"


def test_mlflow_is_the_named_server_or_the_one_under_home(deployed: Path, monkeypatch: pytest.MonkeyPatch):
    """Deployed, runs go to MLOPS_MLFLOW_URL; on one machine to SQLite, and links to the UI that `mlops up` started."""
    assert resources_for("production")["mlflow"].uri == ADDRESSES[MLFLOW.variable]
    monkeypatch.setenv("MLOPS_MLFLOW_UI_URL", "http://127.0.0.1:5017")
    local = resources_for("local")["mlflow"]
    assert (local.uri, local.ui_url) == (f"sqlite:///{deployed / 'mlflow' / 'mlflow.db'}", "http://127.0.0.1:5017")


def test_the_deployed_online_store_is_the_named_redis(deployed: Path, monkeypatch: pytest.MonkeyPatch):
    """Feast and the endpoint find Redis by MLOPS_REDIS_URL; on a single machine that variable means nothing."""
    monkeypatch.delenv("MLOPS_ONLINE_STORE", raising=False)
    assert online_store_url() == ADDRESSES[REDIS.variable]
    monkeypatch.setenv("MLOPS_ENV", "local")
    assert online_store_url() == f"sqlite:///{deployed / 'feast' / 'online_store.db'}"


@pytest.mark.parametrize(
    ("channel", "variable"),
    [("webhook", "MLOPS_ALERT_WEBHOOK"), ("slack", "MLOPS_ALERT_SLACK"), ("smtp", "MLOPS_ALERT_SMTP")],
)
def test_a_channel_of_alerts_is_used_and_never_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, channel: str, variable: str
):
    """Its address is a secret: Dagster holds the variable's name, and the sensor gets the value."""
    assert resources_for()["alerts"].channels == {}
    monkeypatch.setenv(variable, "https://hooks/hunter2")
    alerts = resources_for()["alerts"]
    assert "hunter2" not in str(alerts)
    assert alerts.process_config_and_initialize().channels == {channel: "https://hooks/hunter2"}


def test_resources_load_no_heavy_library(home: Path):
    """Definitions call the factory when they load; what a resource needs comes when it is used."""
    heavy = {"feast", "mlflow", "evidently", "xgboost", "bentoml", "pandas", "pyarrow", "polars", "boto3", "redis"}
    code = (
        f"import sys; from resources.environment import resources_for as r; r(); print(*({heavy} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert loaded.stdout.split() == []


def test_libraries_believe_that_telemetry_is_off(home: Path):
    """Asked in their own words, the libraries that would report home do not."""
    code = """
from resources.environment import quiet_telemetry
quiet_telemetry()
from mlflow.telemetry.utils import is_telemetry_disabled
from bentoml._internal.utils.analytics.usage_stats import do_not_track
from evidently.telemetry import DO_NOT_TRACK_ENV
from dagster._core.telemetry_upload import is_running_in_test
import os
print(is_telemetry_disabled(), do_not_track(), os.environ.get(DO_NOT_TRACK_ENV) is not None, is_running_in_test())
"""
    clean = {key: value for key, value in os.environ.items() if "TRACK" not in key and "TELEMETRY" not in key}
    clean.pop("PYTEST_CURRENT_TEST", None)  # MLflow is silent when it sees itself tested
    told = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PROJECT, env=clean)
    assert told.split() == ["True"] * 4


def test_preparing_home_twice_changes_nothing_the_second_time(home: Path, monkeypatch: pytest.MonkeyPatch):
    """It is called by every command, so that a running daemon must not see its file replaced."""
    monkeypatch.setenv("DAGSTER_HOME", "")
    installed = prepare_home() / "dagster.yaml"
    before = installed.stat().st_mtime_ns, installed.stat().st_ino
    assert prepare_home() == installed.parent == home / "dagster" == Path(os.environ["DAGSTER_HOME"])
    assert (installed.stat().st_mtime_ns, installed.stat().st_ino) == before
    installed.write_text("telemetry: {enabled: true}")
    prepare_home()
    assert installed.read_text() == (PROJECT / "deployment/local/dagster.yaml").read_text()


def test_the_local_instance_is_as_declared(instance: dg.DagsterInstance, home: Path):
    """Dagster itself reads the file: state under home, telemetry off, watched runs, freed slots, one slot a pool."""
    assert instance.root_directory == str(home / "dagster")
    assert instance.telemetry_enabled is False
    assert instance.run_monitoring_enabled
    assert instance.run_monitoring_settings["free_slots_after_run_end_seconds"] == 60
    retries = instance.get_settings("run_retries")
    assert retries["enabled"] and retries["retry_on_asset_or_op_failure"] is False
    concurrency = instance.get_concurrency_config()
    assert concurrency.pool_config.default_pool_limit == 1
    assert concurrency.run_queue_config.max_concurrent_runs == 4
    assert instance.get_settings("sensors")["use_threads"]


def test_local_and_production_differ_only_where_they_must():
    """A rule that is added to one file and forgotten in the other is found here."""
    local = yaml.safe_load((PROJECT / "deployment/local/dagster.yaml").read_text())
    production = yaml.safe_load((PROJECT / "deployment/production/dagster.yaml").read_text())
    assert set(production) - set(local) == {"storage", "compute_logs"}
    assert set(local) - set(production) == {"event_log_storage"}  # production's events are in `storage`
    different = {key for key in local.keys() & production.keys() if local[key] != production[key]}
    assert different == {"concurrency", "run_launcher"}


def test_a_mounted_instance_stays_as_it_is(deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On Kubernetes dagster.yaml is a ConfigMap: nothing beside it is made, and DAGSTER_HOME is not moved."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    mounted.joinpath("dagster.yaml").write_text("telemetry: {enabled: false}")
    monkeypatch.setenv("DAGSTER_HOME", str(mounted))
    assert prepare_home() == mounted and os.environ["DAGSTER_HOME"] == str(mounted)
    assert not (deployed / "dagster").exists()
    monkeypatch.setenv("MLOPS_ENV", "local")  # on one's own machine a leftover variable moves nothing
    assert prepare_home() == deployed / "dagster"


def test_production_runs_on_real_postgres_and_s3(
    home: Path, postgres: str, s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A run in production: its record is in PostgreSQL, its table and what it printed are in S3, none of it on disk."""
    for variable, address in {
        **ADDRESSES,
        POSTGRES.variable: postgres.replace("postgresql", "postgresql+psycopg2"),
        S3.variable: f"{s3}/team",
        "MLOPS_ENV": "production",
        "DAGSTER_HOME": "",
    }.items():
        monkeypatch.setenv(variable, address)
    printed = f"printed {uuid4()}"

    @dg.asset(key=["flights", "weather"])
    def weather() -> pl.DataFrame:
        print(printed)  # noqa: T201  what is printed is the point
        return pl.DataFrame({"temp": [1.5]})

    directory = prepare_home()
    assert "postgresql" not in (directory / "dagster.yaml").read_text()
    with dg.DagsterInstance.get() as instance:
        resources = {key: resources_for()[key] for key in ("io_manager",)}
        result = dg.materialize([weather], instance=instance, resources=resources)
        event = instance.get_latest_materialization_event(dg.AssetKey(["flights", "weather"]))
        assert event and event.run_id == result.run_id
        step = result.filter_events(lambda one: one.event_type_value == "LOGS_CAPTURED")[0]
        key = [result.run_id, "compute_logs", step.logs_captured_data.file_key]
        assert instance.compute_log_manager.cloud_storage_has_logs(key, ComputeIOType.STDOUT)
    assert _run_ids_in(postgres) == [result.run_id]
    assert pl.read_parquet(_object(s3, "team/lake/flights/weather/all.parquet"))["temp"].to_list() == [1.5]
    assert printed in _object(s3, _only_key(s3, "team/compute_logs", ".out")).decode()
    assert not (home / "lake").exists() and not list(directory.rglob("*.db"))


def _run_ids_in(postgres: str) -> list[str]:
    import psycopg2

    with psycopg2.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT run_id FROM runs WHERE status = 'SUCCESS'")
        return [row[0] for row in cursor.fetchall()]


def _object(s3: str, key: str) -> bytes:
    import boto3

    return boto3.client("s3").get_object(Bucket=s3.removeprefix("s3://"), Key=key)["Body"].read()


def _only_key(s3: str, prefix: str, suffix: str) -> str:
    import boto3

    listed = boto3.client("s3").list_objects_v2(Bucket=s3.removeprefix("s3://"), Prefix=prefix)["Contents"]
    (key,) = [item["Key"] for item in listed if item["Key"].endswith(suffix)]
    return key
