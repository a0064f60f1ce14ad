"""MLflow through explicit run ids, against its real SQLite store and its real server over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterExecutionInterruptedError

from resources.artifacts.runs import TAG
from resources.mlflow import (
    TRAINING_PAGES,
    MissingArtifactError,
    MlflowResource,
    MlflowUnreachableError,
    UnknownModelVersionError,
    server_command,
)

NAME = "flights.late_arrival"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@contextmanager
def server(database: Path, port: int) -> Iterator[str]:
    """A real server on loopback, stopped with all its processes."""
    argv, env = server_command(port, tracking_uri=f"sqlite:///{database}", artifact_root=database.parent / "artifacts")
    with (database.parent / "server.log").open("w") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None and time.monotonic() < deadline, (database.parent / "server.log").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's schema, which takes seconds to create: made once, copied for each test."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowResource(tracking_uri=f"sqlite:///{path}").client().search_experiments()
    return path


@pytest.fixture(scope="module")
def http_uri(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = tmp_path_factory.mktemp("server") / "mlflow.db"
    shutil.copy(template, database)
    with server(database, free_port()) as uri:
        yield uri


@pytest.fixture(params=["sqlite", "http"])
def store(request: pytest.FixtureRequest, home: Path, template: Path) -> MlflowResource:
    """The resource on each of its backends; the test's own names keep it apart on the shared server."""
    if request.param == "http":
        return MlflowResource(tracking_uri=request.getfixturevalue("http_uri"))
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(template, home / "mlflow" / "mlflow.db")
    return MlflowResource()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model and experiment name of the test's own."""
    return f"flights.{request.node.originalname}"


def bundle(tmp_path: Path, text: str = "{}") -> Path:
    (tmp_path / "made" / "model").mkdir(parents=True, exist_ok=True)
    (tmp_path / "made" / "manifest.json").write_text(text)
    (tmp_path / "made" / "model" / "model.ubj").write_text("{trees}")
    return tmp_path / "made"


def registered(store: MlflowResource, name: str, tmp_path: Path, text: str = "{}") -> str:
    with store.run(name, "candidate") as run_id:
        store.log_directory(run_id, bundle(tmp_path, text), "bundle")
    return store.register(name, run_id, "bundle", {"gate": "passed"})


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (None, "FINISHED"),
        (ValueError("no"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (DagsterExecutionInterruptedError(), "KILLED"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_run_ends_as_it_went(store: MlflowResource, name: str, ending: BaseException | None, status: str) -> None:
    """The status is the truth, and the error is not swallowed."""
    seen: list[str] = []

    def work() -> None:
        with store.run(name, "work") as run_id:
            seen.append(run_id)
            if ending:
                raise ending

    if ending:
        with pytest.raises(type(ending)):
            work()
    else:
        work()
    info = store.client().get_run(seen[0]).info
    assert info.status == status and info.end_time is not None


def test_an_open_run_is_running_and_nothing_is_active(store: MlflowResource, name: str) -> None:
    """Inside the block the run is RUNNING, while MLflow's global state knows of no run."""
    import mlflow

    with store.run(name, "work") as run_id:
        assert store.client().get_run(run_id).info.status == "RUNNING"
        assert mlflow.active_run() is None


def test_values_are_logged_in_batches_beyond_its_limits(store: MlflowResource, name: str) -> None:
    """More metrics, params and tags than one request may hold all arrive."""
    with store.run(name, "many", {"team": "flights"}) as run_id:
        store.log(
            run_id,
            metrics={f"m{at}": at / 2 for at in range(1700)},
            params={f"p{at}": at for at in range(230)},
            tags={f"t{at}": at for at in range(120)},
        )
    data = store.client().get_run(run_id).data
    assert len(data.metrics) == 1700 and data.metrics["m1699"] == 1699 / 2
    assert len(data.params) == 230 and data.params["p229"] == "229"
    assert data.tags["t119"] == "119" and data.tags["team"] == "flights"


def test_trials_are_child_runs_with_their_own_times(store: MlflowResource, name: str) -> None:
    """Each trial is found under its parent, FINISHED or FAILED, with the seconds it really took; once, asked twice."""
    trials = [
        {"number": 0, "params": {"max_depth": 3}, "value": 0.7, "state": "COMPLETE"},
        {"number": 1, "params": {"max_depth": 9}, "value": None, "state": "FAIL"},
        {"number": 2, "params": {"max_depth": 8}, "value": None, "state": "PRUNED", "pruned_at": 12},
    ]
    with store.run(name, "search") as parent:
        times = {"started_at": "2013-04-01T00:00:00+00:00", "seconds": 2.5}
        children = store.log_trials(parent, "roc_auc", [trial | times for trial in trials[:1]])
        children += store.log_trials(parent, "roc_auc", [trial | times for trial in trials])
        assert store.client().get_run(parent).info.status == "RUNNING"
    experiment = store.experiment(name)
    found = store.client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    runs = {run.info.run_id: run for run in found}
    assert set(runs) == set(children)
    first, second, third = (runs[child] for child in children)
    assert (third.info.status, third.data.tags["trial_state"], third.data.metrics) == (
        "FINISHED",
        "PRUNED",
        {"pruned_at": 12},
    )
    assert (first.info.status, second.info.status) == ("FINISHED", "FAILED")
    assert first.data.metrics == {"roc_auc": 0.7} and second.data.metrics == {}
    assert first.data.params == {"max_depth": "3"} and first.info.end_time - first.info.start_time == 2500


def test_an_experiment_is_one_for_all_its_creators(store: MlflowResource, name: str) -> None:
    """Eight threads that ask for a new experiment at once get one id."""
    store.client()
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(lambda _: store.experiment(name), range(8)))) == 1


def test_a_version_holds_the_runs_artifacts(store: MlflowResource, name: str, tmp_path: Path) -> None:
    """A directory without an MLmodel is registered, listed with its tags, and comes back byte for byte."""
    version = registered(store, name, tmp_path, '{"rows": 7}')
    found = store.version(name, version)
    assert (found.version, found.tags["gate"]) == ("1", "passed") and found.run_id
    downloaded = store.download(name, version)
    assert json.loads((downloaded / "manifest.json").read_text()) == {"rows": 7}
    assert (downloaded / "model" / "model.ubj").read_text() == "{trees}"
    assert store.download(name, version) == downloaded


def test_versions_are_listed_newest_first(store: MlflowResource, name: str, tmp_path: Path) -> None:
    """All of them, by number and not by text; none for a name that was never registered."""
    with store.run(name, "candidate") as run_id:
        store.log_directory(run_id, bundle(tmp_path), "bundle")
    for _ in range(11):
        store.register(name, run_id, "bundle")
    assert [item.version for item in store.versions(name)] == [str(number) for number in range(11, 0, -1)]
    assert store.versions("flights.never") == []


def test_an_alias_moves(store: MlflowResource, name: str, tmp_path: Path) -> None:
    """None before the first move, then the version it was last pointed to; a tag set later is seen."""
    assert store.alias(name, "champion") is None
    for wanted in ("1", "2"):
        assert registered(store, name, tmp_path) == wanted
        store.set_alias(name, "champion", wanted)
        assert store.alias(name, "champion") == wanted
    store.set_alias(name, "champion", "1")
    store.tag_version(name, "1", {"bento": "flights_late:abc", "gate": "refused"})
    assert store.alias(name, "champion") == "1" and store.alias(name, "other") is None
    tags = {key: value for key, value in store.version(name, "1").tags.items() if key != TAG}
    assert tags == {"bento": "flights_late:abc", "gate": "refused"}


def test_what_is_missing_is_named(store: MlflowResource, name: str, tmp_path: Path) -> None:
    """An unknown version lists the known ones, for reading and for an alias; a run without the artifact is named."""
    registered(store, name, tmp_path)
    with pytest.raises(UnknownModelVersionError, match=rf"{name}.*'7'.*known: 1"):
        store.version(name, "7")
    with pytest.raises(UnknownModelVersionError, match="known: 1"):
        store.set_alias(name, "champion", "7")
    with store.run(name, "empty") as run_id:
        pass
    with pytest.raises(MissingArtifactError, match=f"{run_id}.*'bundle'"):
        store.register(name, run_id, "bundle")


def post(uri: str, path: str, body: dict) -> dict:
    """What the UI asks the server for."""
    request = urllib.request.Request(
        f"{uri}/ajax-api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def test_the_ui_is_given_runs_and_versions(http_uri: str, home: Path, tmp_path: Path) -> None:
    """The requests that the web pages make show the run, the version and its alias, and our links lead to them."""
    store, name = MlflowResource(tracking_uri=http_uri), "flights.in_the_ui"
    version = registered(store, name, tmp_path)
    store.set_alias(name, "champion", version)
    run_id = store.version(name, version).run_id
    runs = post(http_uri, "runs/search", {"experiment_ids": [store.experiment(name)]})["runs"]
    assert [run["info"]["run_id"] for run in runs] == [run_id] and runs[0]["info"]["run_name"] == "candidate"
    with urllib.request.urlopen(f"{http_uri}/ajax-api/2.0/mlflow/registered-models/get?name={name}") as response:
        model = json.load(response)["registered_model"]
    assert (
        model["aliases"] == [{"alias": "champion", "version": "1"}] and model["latest_versions"][0]["run_id"] == run_id
    )
    assert store.run_url(run_id) == f"{http_uri}/#/experiments/{store.experiment(name)}/runs/{run_id}?{TRAINING_PAGES}"
    assert store.version_url(name, "1") == f"{http_uri}/#/models/{name}/versions/1?{TRAINING_PAGES}"


def test_the_server_refuses_foreign_hosts_and_origins(http_uri: str) -> None:
    """A rebound DNS name is refused, and so is a page of another origin that wants to change something."""
    url = f"{http_uri}/ajax-api/2.0/mlflow/experiments/create"
    foreign = [{"Host": "evil.example"}, {"Origin": "http://evil.example"}]
    for headers in foreign:
        request = urllib.request.Request(url, b'{"name": "evil"}', {"Content-Type": "application/json", **headers})
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=10)
        assert refusal.value.code == 403


def test_the_server_starts_on_loopback_with_pickle_and_jobs_off(home: Path) -> None:
    """What `make up` runs: the store under MLOPS_HOME, no outside address, nothing that loads code, no telemetry."""
    argv, env = server_command(5123)
    assert argv[argv.index("--host") + 1] == "127.0.0.1" and f"sqlite:///{home}/mlflow/mlflow.db" in argv
    assert env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert env["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_client_has_pickle_and_telemetry_off(store: MlflowResource) -> None:
    """MLflow itself, asked for its settings in this process, agrees."""
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION
    from mlflow.telemetry.utils import is_telemetry_disabled

    store.client()
    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False and is_telemetry_disabled()


def test_an_unreachable_server_is_an_error_that_says_so(home: Path) -> None:
    """After its bounded retries a refused connection names the address and the way out."""
    port = free_port()
    with pytest.raises(MlflowUnreachableError, match=f"127.0.0.1:{port}.*1 retries.*make up"):
        MlflowResource(tracking_uri=f"http://127.0.0.1:{port}", retries=1).experiment("late")


def test_a_server_that_comes_up_late_is_reached(template: Path, home: Path, tmp_path: Path) -> None:
    """A call made before the server listens succeeds by its retries."""
    port = free_port()
    shutil.copy(template, tmp_path / "mlflow.db")
    early = MlflowResource(tracking_uri=f"http://127.0.0.1:{port}", retries=6)
    with ThreadPoolExecutor(1) as caller:
        asked = caller.submit(early.experiment, "late")
        with server(tmp_path / "mlflow.db", port):
            assert asked.result(timeout=120) == early.experiment("late")
