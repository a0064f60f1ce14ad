"""The columns of MLflow's own schema that we read and write, and the engine for its database.

They are named here once; a database without them (an MLflow of another age) is refused by name instead of misread.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import BigInteger, Boolean, Float, Integer, String, column, table

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

WORKSPACE = "default"
LOCK_SECONDS = 20.0  # as long as MLflow itself waits for a writer


def _metric_table(name: str) -> Any:
    return table(
        name,
        column("key", String),
        column("value", Float),
        column("timestamp", BigInteger),
        column("step", BigInteger),
        column("is_nan", Boolean),
        column("run_uuid", String),
    )


def _pair_table(name: str) -> Any:
    return table(name, column("key", String), column("value", String), column("run_uuid", String))


runs: Any = table(
    "runs",
    column("run_uuid", String),
    column("name", String),
    column("status", String),
    column("user_id", String),
    column("start_time", BigInteger),
    column("end_time", BigInteger),
    column("lifecycle_stage", String),
    column("artifact_uri", String),
    column("experiment_id", Integer),
)
experiments: Any = table(
    "experiments",
    column("experiment_id", Integer),
    column("name", String),
    column("workspace", String),
    column("lifecycle_stage", String),
)
latest_metrics: Any = _metric_table("latest_metrics")
metrics: Any = _metric_table("metrics")
params: Any = _pair_table("params")
tags: Any = _pair_table("tags")
model_versions: Any = table(
    "model_versions",
    column("workspace", String),
    column("name", String),
    column("version", Integer),
    column("creation_time", BigInteger),
    column("current_stage", String),
    column("source", String),
    column("run_id", String),
)
version_tags: Any = table(
    "model_version_tags",
    column("workspace", String),
    column("name", String),
    column("version", Integer),
    column("key", String),
    column("value", String),
)
aliases: Any = table(
    "registered_model_aliases",
    column("workspace", String),
    column("name", String),
    column("alias", String),
    column("version", Integer),
)
TABLES = (runs, experiments, latest_metrics, metrics, params, tags, model_versions, version_tags, aliases)


class ForeignSchemaError(RuntimeError):
    """A database is not MLflow's, or is that of an MLflow whose schema we do not know."""

    @classmethod
    def of(cls, where: str, missing: list[str]) -> Self:
        return cls(
            f"The database {where} lacks what MLflow 3 keeps there: {', '.join(missing)}. Name the tracking server's "
            "own database (MLOPS_MLFLOW_DATABASE), and bring it up to date: mlflow db upgrade URL."
        )


class UnreachableDatabaseError(ConnectionError):
    """MLflow's database was asked for and does not answer, or its URL is none."""

    @classmethod
    def of(cls, where: str, problem: Exception) -> Self:
        first = str(problem).strip().partition("\n")[0]
        return cls(
            f"MLflow's database {where} cannot be used: {first}. Look at MLOPS_MLFLOW_DATABASE or --database: a URL as "
            "postgresql+psycopg2://user:password@db:5432/mlflow or sqlite:////path/mlflow.db."
        )


@cache
def engine(url: str) -> Engine:
    """The engine of a process for an MLflow database whose schema was looked at.

    Raises ForeignSchemaError, UnreachableDatabaseError.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        where = make_url(url).render_as_string(hide_password=True)
    except ArgumentError as problem:
        raise UnreachableDatabaseError.of("(as it is named)", problem) from None
    try:
        made = _made(url)
        _refuse_foreign(made)
    except (SQLAlchemyError, ModuleNotFoundError) as problem:
        raise UnreachableDatabaseError.of(where, problem) from problem
    return made


def _made(url: str) -> Engine:
    from sqlalchemy import create_engine, event

    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    made = create_engine(url, connect_args={"timeout": LOCK_SECONDS})

    @event.listens_for(made, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # else sqlite3 begins late, and what was read may be stale when it writes
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA case_sensitive_like = true")

    @event.listens_for(made, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return made


def reading(url: str) -> Engine:
    """The same, for reading: on PostgreSQL without a transaction, whose beginning and end cost a round trip."""
    made = engine(url)
    return made.execution_options(isolation_level="AUTOCOMMIT") if made.dialect.name == "postgresql" else made


def writing(url: str) -> Engine:
    """The same, for transactions that write: what they read is still true when they do."""
    return engine(url).execution_options(writes=True)


def _refuse_foreign(made: Engine) -> None:
    from sqlalchemy import inspect

    looked = inspect(made)
    there = set(looked.get_table_names())
    missing = [one.name for one in TABLES if one.name not in there]
    for one in TABLES:
        if one.name in there:
            has = {found["name"] for found in looked.get_columns(one.name)}
            missing += [f"{one.name}.{wanted.name}" for wanted in one.columns if wanted.name not in has]
    if missing:
        made.dispose()
        raise ForeignSchemaError.of(made.url.render_as_string(hide_password=True), missing)
