"""Our indices come to MLflow's database by themselves, stay, and never stand in MLflow's way."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from resources.mlflow import MlflowResource
from resources.tracking.migration import INDICES, VERSION_TABLE, applied, migrate
from resources.tracking.tables import ForeignSchemaError, UnreachableDatabaseError, engine, writing

OURS = {index.name for index in INDICES}


def indices(url: str) -> set[str]:
    made = create_engine(url)
    names = {one["name"] for index in INDICES for one in inspect(made).get_indexes(index.table)}
    made.dispose()
    return {str(name) for name in names if str(name).startswith("mlops_")}


def test_an_embedded_database_has_them_from_the_first_use(store: MlflowResource) -> None:
    store.client()
    assert indices(store.uri) == OURS and [version for version, _ in applied(store.uri)] == [1]


def test_a_migration_repeated_changes_nothing(either: MlflowResource) -> None:
    either.client()
    migrate(either.uri)
    before = applied(either.uri)
    assert migrate(either.uri) == [] and indices(either.uri) == OURS and applied(either.uri) == before


def test_what_mlflows_own_upgrade_drops_comes_back(either: MlflowResource) -> None:
    """An index that is gone is made again, whatever the version table says; MLflow finds its schema in order."""
    either.client()
    migrate(either.uri)
    lost = min(OURS)
    with writing(either.uri).begin() as connection:
        connection.execute(text(f"DROP INDEX {lost}"))
    assert migrate(either.uri) == [lost] and indices(either.uri) == OURS


def test_mlflow_upgrades_a_database_that_has_them(store: MlflowResource) -> None:
    """`mlflow db upgrade` on it succeeds, and leaves them and our version table."""
    store.client()
    command = [str(Path(sys.executable).with_name("mlflow")), "db", "upgrade", store.uri]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert indices(store.uri) == OURS and inspect(engine(store.uri)).has_table(VERSION_TABLE)


def test_a_half_built_index_is_built_anew(postgres: str) -> None:
    """On PostgreSQL one whose building broke off is there and unused."""
    url = postgres.replace("postgresql://", "postgresql+psycopg2://")
    MlflowResource(tracking_uri=url).client().search_experiments()
    migrate(url)
    broken = min(OURS)
    with engine(url).begin() as connection:
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = CAST(:name AS regclass)"), {"name": broken}
        )
    assert migrate(url) == [broken]


def test_a_database_that_is_not_mlflows_is_refused_by_name(tmp_path: Path) -> None:
    """With what it lacks, and without a password."""
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE runs (run_uuid TEXT)")
    with pytest.raises(ForeignSchemaError, match=r"other\.db.*latest_metrics.*runs\.start_time.*MLOPS_MLFLOW_DATABASE"):
        migrate(f"sqlite:///{tmp_path / 'other.db'}")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "as it is named"),
        ("sqlite:////nowhere/at/all.db", "unable to open"),
        ("postgresql+psycopg2://me:hunter2@127.0.0.1:9/mlflow", "refused"),
        ("nosuch://me:hunter2@db/mlflow", "nosuch"),
    ],
)
def test_a_database_that_does_not_answer_is_told_without_its_password(url: str, words: str) -> None:
    with pytest.raises(UnreachableDatabaseError, match=f"{words}.*MLOPS_MLFLOW_DATABASE") as told:
        migrate(url)
    assert "hunter2" not in str(told.value)


def test_searches_walk_along_them(store: MlflowResource) -> None:
    """A page in the order of a metric sorts nothing but ties, and a page from the newest sorts nothing at all."""
    store.client()
    with closing(sqlite3.connect(store.uri.removeprefix("sqlite:///"))) as database:
        plan = " ".join(
            row[3]
            for row in database.execute(
                "EXPLAIN QUERY PLAN SELECT run_uuid FROM runs WHERE experiment_id = 1 AND lifecycle_stage = 'active' "
                "ORDER BY start_time DESC, run_uuid LIMIT 20"
            )
        )
        assert "mlops_runs_by_start" in plan and "TEMP B-TREE" not in plan
        plan = " ".join(
            row[3]
            for row in database.execute(
                "EXPLAIN QUERY PLAN SELECT run_uuid FROM latest_metrics WHERE key = 'auc' AND is_nan = 0 "
                "ORDER BY value DESC LIMIT 20"
            )
        )
        assert "mlops_latest_metrics_by_value" in plan and "TEMP B-TREE" not in plan
