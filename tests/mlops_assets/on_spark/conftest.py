"""Spark as it is, tuned for tables of a hundred rows: compiling code for each plan takes longer than they do."""

from __future__ import annotations

import pytest

from resources.spark import session


@pytest.fixture(scope="session", autouse=True)
def _small() -> None:
    for name, value in {"spark.sql.shuffle.partitions": "2", "spark.sql.codegen.wholeStage": "false"}.items():
        session().conf.set(name, value)
