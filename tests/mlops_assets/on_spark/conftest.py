"""Spark as it is, tuned for tables of a hundred rows: compiling code for each plan takes longer than they do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from resources.spark import MASTER, SETTINGS, session
from tests.resources.spark.cluster import cluster


@pytest.fixture(scope="package", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        session().stop()
        patch.setitem(SETTINGS, "spark.sql.codegen.wholeStage", "false")
        patch.setitem(SETTINGS, "spark.sql.shuffle.partitions", "2")
        yield
        session().stop()


@pytest.fixture(scope="module", params=["this process", "a cluster"])
def everywhere(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Spark in this process, then on a standalone cluster of a master and two workers."""
    if request.param == "this process":
        yield
        return
    session().stop()
    with cluster(tmp_path_factory.mktemp("spark")) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv(MASTER, address)
        yield
        session().stop()
