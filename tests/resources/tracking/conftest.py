"""MLflow's database with its schema, on SQLite and on PostgreSQL: made once, copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from resources.mlflow import MlflowResource


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "mlflow.db"
    MlflowResource(tracking_uri=f"sqlite:///{path}").client().search_experiments()
    return path


@pytest.fixture
def store(home: Path, schema: Path) -> MlflowResource:
    """The embedded store of a home, with MLflow's schema and our indices."""
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(schema, home / "mlflow" / "mlflow.db")
    return MlflowResource()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, home: Path) -> MlflowResource:
    """The same on each database that MLflow runs on here."""
    if request.param == "sqlite":
        return request.getfixturevalue("store")
    home.mkdir(parents=True)
    url = request.getfixturevalue("postgres").replace("postgresql://", "postgresql+psycopg2://")
    return MlflowResource(tracking_uri=url, artifact_root=(home / "artifacts").as_uri())
