"""What the manifests say is enough to run: their words, settings, files and secrets bring the platform up.

On a real PostgreSQL, Redis and S3; each process gets what its pod would get, and may write where its pod may.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg2
import pytest

from mlops_assets.serving.server.supervisor import GRACE_SECONDS
from resources.environment import PROJECT
from resources.releases import ReleaseStore
from tests.deployment.applied import KUBERNETES, Platform
from tests.deployment.started import HERE, Machine, Process, started
from tests.mlops_assets.serving.conftest import MODEL, make_bundle
from tests.resources.conftest import RedisServer, free_port, postgres_server, redis_binary, s3_server, wait_until

__all__ = ["make_bundle", "postgres_server", "s3_server"]  # fixtures
pytestmark = pytest.mark.slow
RUN_SECONDS = 240
LAUNCH = """
mutation ($job: String!) {
  launchRun(executionParams: {selector: {
    repositoryName: "__repository__", repositoryLocationName: "mlops_assets", jobName: $job}}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
CAPTURED = """
query ($run: ID!) {
  logsForRun(runId: $run) { ... on EventConnection { events { ... on LogsCapturedEvent { fileKey } } } }
}
"""
LOGS = "query ($key: [String!]!) { capturedLogs(logKey: $key) { stderr } }"
STATUS = "query ($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"


@pytest.fixture(scope="module")
def addresses(
    postgres_server: str, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """The Secret and the settings of a user whose servers are on this machine; the databases are the manifest's own."""
    connection = psycopg2.connect(f"{postgres_server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE dagster")
        cursor.execute((KUBERNETES / "components/postgres/databases.sql").read_text())
    connection.close()
    credentials = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=s3_server, **credentials).create_bucket(Bucket="mlops")
    redis = RedisServer(tmp_path_factory.mktemp("redis"))
    database = postgres_server.replace("postgresql", "postgresql+psycopg2")
    secret = {
        "MLOPS_POSTGRES_URL": f"{database}/dagster",
        "MLOPS_MLFLOW_DATABASE": f"{database}/mlflow",
        "MLOPS_REDIS_URL": redis.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }
    yield secret, {"AWS_ENDPOINT_URL": s3_server, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    redis.kill()


@pytest.fixture(scope="module")
def machine(
    whole: Platform, addresses: tuple[dict[str, str], dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Machine:
    return Machine(whole, tmp_path_factory.mktemp("cluster"), *addresses)


@pytest.fixture(scope="module")
def processes(machine: Machine) -> Iterator[dict[str, Process]]:
    """The platform's own, all at once: none waits for another, and their tables are not there yet."""
    with started(machine, "mlflow", "code-server", "webserver", "daemon") as running:
        yield running


def test_every_process_passes_its_probes(processes: dict[str, Process]):
    """Those that the manifest declares, as the kubelet would ask them."""
    for process in processes.values():
        process.becomes_ready()
    assert all(process.process.poll() is None for process in processes.values())


def test_a_run_goes_from_the_page_to_the_database(processes: dict[str, Process], machine: Machine):
    """Web server, queue, daemon, code server, MLflow: one job passes them all, and what it printed is in the store."""
    for process in processes.values():
        process.becomes_ready()
    web = processes["webserver"]
    asked = _graphql(web.url, LAUNCH, job="platform__tracking_archive")["launchRun"]
    assert asked["__typename"] == "LaunchRunSuccess", asked
    run = asked["run"]["runId"]
    _wait_for(web.url, run, [process.log for process in processes.values()])
    store = boto3.client(
        "s3", endpoint_url=machine.changes["AWS_ENDPOINT_URL"], aws_access_key_id="test", aws_secret_access_key="test"
    )

    def kept() -> bool:
        keys = [one["Key"] for one in store.list_objects_v2(Bucket="mlops").get("Contents", ())]
        return any(key.startswith("platform/compute_logs/") and run in key for key in keys)

    wait_until(kept, "the run's log in the store", RUN_SECONDS)
    events = _graphql(web.url, CAPTURED, run=run)["logsForRun"]["events"]
    (key,) = [event["fileKey"] for event in events if event]
    shown = _graphql(web.url, LOGS, key=[run, "compute_logs", key])["capturedLogs"]
    assert "are archived in" in shown["stderr"], "the page shows what the run printed elsewhere"


def test_mlflow_answers_to_its_own_names_only(processes: dict[str, Process]):
    """A page elsewhere that made this address its own is refused; the name that the settings give is not."""
    processes["mlflow"].becomes_ready()
    url = f"{processes['mlflow'].url}/api/2.0/mlflow/experiments/search?max_results=1"
    port = url.split(":")[2].split("/", maxsplit=1)[0]
    assert httpx.get(url, headers={"host": f"mlflow:{port}"}).status_code == 200
    assert httpx.get(url, headers={"host": "evil.example"}).status_code == 403


def test_the_endpoint_answers_with_no_secret_but_the_stores(machine: Machine, make_bundle: Callable[..., Path]):
    """From the volume and Redis alone; what it answered is logged on the volume, and TERM ends it in time."""
    home = machine.root / "var/lib/mlops"
    bento = home / "bentoml/bentos/flights_late_arrival/1"
    shutil.copytree(make_bundle(1), bento / "src" / "bundle")
    (bento / "bento.yaml").touch()
    ReleaseStore(home / "releases").start_canary(MODEL, "flights_late_arrival:1", "1", (100,), by="ada", why="a test")
    with started(machine, "endpoint") as running:
        endpoint = running["endpoint"]
        endpoint.becomes_ready()
        assert not {name for name in endpoint.env if "POSTGRES" in name or "AWS_SECRET" in name}
        row = {"distance": 2475.0, "carrier": "DL", "seats": 180, "holiday": False, "temp": 61.0, "delay": 12.5}
        answer = httpx.post(f"{endpoint.url}/{MODEL}/predict", json={"rows": [{"features": row}]}, timeout=30)
        assert answer.status_code == 200, answer.text
        told = answer.json()["predictions"][0]
        assert 0 <= told["prediction"] <= 1 and told["version"] == "1"
        asked = time.monotonic()
        endpoint.process.terminate()
        assert endpoint.process.wait(timeout=40) == 0
        assert time.monotonic() - asked < GRACE_SECONDS
    assert any(told["request_id"] in path.read_text() for path in home.rglob("*.jsonl") if MODEL in str(path))


def test_redis_takes_its_settings_and_its_password(tmp_path: Path, whole: Platform, secret: dict[str, str]):
    """The words of its container, with a Redis of this machine; the probe's command logs in by itself."""
    (container,) = whole.pod("redis").containers
    port, data = free_port(), tmp_path / "data"
    data.mkdir()
    settings = whole.named("ConfigMap", "redis-settings")["data"]["redis.conf"]
    settings = settings.replace("/data", str(data)).replace("6379", str(port)).replace("0.0.0.0", "127.0.0.1")
    (tmp_path / "redis.conf").write_text(settings)
    words = {"redis-server": redis_binary(), "/etc/redis/redis.conf": str(tmp_path / "redis.conf")}
    words["$(REDISCLI_AUTH)"] = secret["REDIS_PASSWORD"]
    server = subprocess.Popen([words.get(word, word) for word in container["args"]], stdout=subprocess.DEVNULL)
    try:
        import redis

        with redis.Redis(port=port, password=secret["REDIS_PASSWORD"]) as client:
            wait_until(lambda: _answers(client), "Redis")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
        with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    finally:
        server.kill()
        server.wait()


def test_a_process_that_writes_where_it_may_not_is_found(tmp_path: Path):
    """The hook that stands for a read-only root does refuse."""
    from tests.deployment.started import READ_ONLY

    (tmp_path / "sitecustomize.py").write_text(READ_ONLY)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "WRITABLE": str(tmp_path / "may")}
    done = subprocess.run(
        [HERE / "python", "-c", f"open({str(PROJECT / 'may-not')!r}, 'w')"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Read-only file system" in done.stderr
    assert not (PROJECT / "may-not").exists()


def _graphql(url: str, query: str, **variables: Any) -> dict[str, Any]:
    answer = httpx.post(f"{url}/graphql", json={"query": query, "variables": variables}, timeout=60)
    answer.raise_for_status()
    assert "errors" not in answer.json(), answer.text
    return dict(answer.json()["data"])


def _wait_for(url: str, run: str, logs: list[Path]) -> None:
    deadline = time.monotonic() + RUN_SECONDS
    while (status := _graphql(url, STATUS, run=run)["runOrError"]["status"]) != "SUCCESS":
        told = "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs)
        assert status not in ("FAILURE", "CANCELED") and time.monotonic() < deadline, f"{status}\n{told}"
        time.sleep(0.5)


def _answers(client: Any) -> bool:
    import redis

    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
