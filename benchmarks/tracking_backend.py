"""An experiment and a registry of the size that a team reaches in years, written into MLflow's own schema in bulk.

Rows are what the platform itself writes: a run has a few metrics, params and tags, a version the tags of its gate. The
first runs have a metric history too. MLflow creates its schema, and nothing else of it takes part in writing.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from hashlib import md5
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

EXPERIMENT, MODEL = "flights/scale", "flights.scale"
EXPERIMENT_ID = 77
SCORES = ("roc_auc", "average_precision", "log_loss", "brier", "accuracy")
METRICS = (
    *(f"{part}_{score}" for part in ("holdout", "validation") for score in SCORES),
    "seconds_fit",
    "seconds_total",
)
PARAMS = ("max_depth", "learning_rate", "n_estimators", "subsample", "colsample_bytree", "min_child_weight")
TAGS = (
    *("dagster/run_id", "dagster/asset_key", "dagster/partition", "training_set_hash", "git_commit", "hardware"),
    *("team", "model", "framework", "mlflow.runName", "mlflow.user", "mlflow.source.type"),
)
HISTORY = "loss"
HISTORY_RUNS, HISTORY_STEPS = 50, 1000
STARTED = 1_357_000_000_000  # the beginning of 2013, in milliseconds
MINUTE = 60_000
HARDWARE = ("4 CPUs, 16 GB", "16 CPUs, 64 GB", "32 CPUs, 128 GB")
ROWS_AT_ONCE = 50_000


def fill(url: str, runs: int, versions: int, seed: int = 7) -> None:
    """Create the schema at `url`, with so many runs in one experiment and versions of one model."""
    from mlflow import MlflowClient

    MlflowClient(url, url).search_experiments()
    MlflowClient(url, url).search_registered_models(max_results=1)
    engine, chance = create_engine(url), random.Random(seed)  # noqa: S311  reproducible, and no secret
    try:
        with engine.begin() as connection:
            write(connection, "experiments", _EXPERIMENT, [_experiment()])
            for table, columns, rows in (*_runs(runs, chance), *_registry(MODEL, versions)):
                write(connection, table, columns, rows)
    finally:
        engine.dispose()


def add_versions(url: str, name: str, versions: int) -> None:
    """One more registered model, with so many versions."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for table, columns, rows in _registry(name, versions):
                write(connection, table, columns, rows)
    finally:
        engine.dispose()


def write(connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows in bulk: COPY on PostgreSQL, one statement for many on SQLite."""
    raw: Any = connection.connection.driver_connection
    pending = iter(rows)
    while batch := list(islice(pending, ROWS_AT_ONCE)):
        if connection.dialect.name == "postgresql":
            lines = "".join("\t".join(_cell(value) for value in row) + "\n" for row in batch)
            named = ", ".join(f'"{column}"' for column in columns)
            with closing(raw.cursor()) as cursor:
                cursor.copy_expert(f"COPY {table} ({named}) FROM STDIN", io.StringIO(lines))
        else:
            named, places = ", ".join(f'"{column}"' for column in columns), ", ".join("?" * len(columns))
            raw.executemany(f"INSERT INTO {table} ({named}) VALUES ({places})", batch)  # noqa: S608  names of ours


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "t" if value else "f"
    return "\\N" if value is None else str(value)


def run_id(number: int) -> str:
    """Without order, as MLflow's are: ids that grow with time would lie beside each other in every index."""
    return md5(b"%d" % number, usedforsecurity=False).hexdigest()


_EXPERIMENT = ("experiment_id", "name", "artifact_location", "lifecycle_stage", "creation_time", "last_update_time")


def _experiment() -> tuple[Any, ...]:
    return (EXPERIMENT_ID, EXPERIMENT, "file:///artifacts", "active", STARTED, STARTED)


Rows = tuple[str, Sequence[str], Iterable[Sequence[Any]]]


def _runs(count: int, chance: random.Random) -> Iterator[Rows]:
    numbers = range(count)
    yield (
        "runs",
        ("run_uuid", "name", "source_type", "source_name", "entry_point_name", "user_id", "status", "start_time",
         "end_time", "source_version", "lifecycle_stage", "artifact_uri", "experiment_id"),
        ((run_id(n), f"run {n}", "LOCAL", "", "", "team", "FINISHED" if n % 50 else "FAILED", STARTED + n * MINUTE,
          STARTED + (n + 3) * MINUTE, "", "active", f"file:///artifacts/{run_id(n)}", EXPERIMENT_ID)
         for n in numbers),
    )  # fmt: skip
    metric = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
    latest = [
        (key, chance.betavariate(8, 3), STARTED + (n + 3) * MINUTE, 0, False, run_id(n))
        for n in numbers
        for key in METRICS
    ]
    yield "latest_metrics", metric, latest
    yield "metrics", metric, latest
    history = [
        [
            (HISTORY, 1 / (step + 1), STARTED + n * MINUTE + step, step, False, run_id(n))
            for step in range(HISTORY_STEPS)
        ]
        for n in numbers[:HISTORY_RUNS]
    ]
    yield "metrics", metric, [row for rows in history for row in rows]
    yield "latest_metrics", metric, [rows[-1] for rows in history]
    pair = ("key", "value", "run_uuid")
    yield "params", pair, ((key, f"{chance.random():.4f}", run_id(n)) for n in numbers for key in PARAMS)
    yield "tags", pair, ((key, _tag(key, n), run_id(n)) for n in numbers for key in TAGS)


def _tag(key: str, number: int) -> str:
    told = {
        "hardware": HARDWARE[number % 3],
        "team": "flights",
        "framework": "xgboost",
        "mlflow.runName": f"run {number}",
    }
    return told.get(key, f"{key}-{number:08x}")


def _registry(name: str, count: int) -> Iterator[Rows]:
    """One version in three was refused by its gate, and the newest ten thousandth part were all rolled back."""
    versions = range(1, count + 1)
    model = ("workspace", "name", "creation_time", "last_updated_time")
    yield "registered_models", model, [("default", name, STARTED, STARTED)]
    yield (
        "model_versions",
        (*("workspace", "name", "version", "creation_time", "last_updated_time"),
         *("current_stage", "source", "run_id", "status")),
        (("default", name, n, STARTED + n * MINUTE, STARTED + n * MINUTE, "None", f"file:///artifacts/{run_id(n)}/bundle",
          run_id(n), "READY") for n in versions),
    )  # fmt: skip
    told = [
        ("default", name, n, key, value)
        for n in versions
        for key, value in {
            "cutoff": f"2013-{n % 12 + 1:02d}-01",
            "gate": "refused" if n % 3 == 0 else "passed",
            "metric": f"{0.6 + n % 97 / 1000:.4f}",
            "rolled_back": "true" if n > count - count // 10_000 else "false",
            "team": "flights",
        }.items()
    ]
    yield "model_version_tags", ("workspace", "name", "version", "key", "value"), told
    alias = ("workspace", "name", "alias", "version")
    yield "registered_model_aliases", alias, [("default", name, "champion", max(1, count // 2))]


# -- PostgreSQL


@contextmanager
def postgres_server() -> Iterator[str | None]:
    """The URL of a PostgreSQL of the block's own, with its usual settings; None where none is installed."""
    binaries = _postgres_binaries()
    if binaries is None:
        yield None
        return
    with TemporaryDirectory(prefix="pg-benchmark-", ignore_cleanup_errors=True) as name:
        root, port = Path(name), _free_port()
        root.chmod(0o777)  # its owner may be another user than the server's
        options: dict[str, Any] = {
            "cwd": root,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        } | _unprivileged()
        words = ["-D", str(root / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([binaries / "initdb", *words], check=True, **options)
        words = ["-D", str(root / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(root)]
        server = subprocess.Popen([binaries / "postgres", *words], **options)
        try:
            url = f"postgresql+psycopg2://postgres@127.0.0.1:{port}/postgres"
            _until_it_answers(server, url)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # SIGTERM waits for every connection that a pool keeps
            server.wait(60)


def new_database(server: str, name: str, template: str = "template1") -> str:
    """The URL of a new database of that server: empty, or a copy of another, whose connections are ended."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": template}
        )
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def settled(engine: Engine) -> None:
    """What PostgreSQL's own housekeeping does within minutes of such a load; SQLite has none."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def _postgres_binaries() -> Path | None:
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    package = find_spec("pgserver")  # found, not imported: its import creates a system user
    return Path(package.origin).parent / "pginstall" / "bin" if package and package.origin else None


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root, and so it runs as nobody there."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until_it_answers(server: subprocess.Popen[bytes], url: str) -> None:
    """It listens a while before it lets anybody in."""
    engine, deadline = create_engine(url), time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            engine.connect().close()
        except OperationalError:
            time.sleep(0.1)
        else:
            engine.dispose()
            return
    raise RuntimeError("PostgreSQL did not start.")
