"""A model whose compute is Spark has the training set, and so the model, that it has without."""

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from polars.testing import assert_frame_equal

from mlops_assets.links.spec import link_key
from resources.spark import SETTINGS, point_in_time, session

if TYPE_CHECKING:
    from conftest import Platform

CUTOFF = "2013-07-01"


def test_the_training_set_and_the_model_are_the_same(platform: "Platform", monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, order, name of the content, checks and what is told; then the model's files, byte for byte.

    A few results may come to the driver, and no table: it takes a megabyte at most.
    """
    session().stop()
    for name, value in {"spark.driver.maxResultSize": "1m", "spark.sql.codegen.wholeStage": "false"}.items():
        monkeypatch.setitem(SETTINGS, name, value)
    lake, key = platform.resources["lake"], link_key(platform.model, "training_set")
    polars = platform.run("training_set", partition=CUTOFF)
    expected = lake.scan(key, [CUTOFF]).collect()
    lake.path(key, CUTOFF).unlink()

    there = platform.declared(compute="spark")
    ran = there.run("training_set", partition=CUTOFF)
    assert ran.ok, ran.trouble
    assert_frame_equal(lake.scan(key, [CUTOFF]).collect(), expected, check_exact=True)
    told, said = ran.facts["training_set"], polars.facts["training_set"]
    assert told | {"bytes": said["bytes"]} == said  # as many values, in another's compression
    for name, check in polars.checks.items():
        assert ran.checks[name].passed == check.passed
        assert ran.checks[name].description == check.description

    trained = there.run("candidate", partition=CUTOFF)
    assert trained.ok, trained.trouble
    bundles = [platform.promotion.mlflow.download(there.model.registered_name, version) for version in ("1", "2")]
    files = [{path.name: path.read_bytes() for path in (bundle / "model").iterdir()} for bundle in bundles]
    assert files[0] and files[0] == files[1]


def test_a_join_without_ttl_fails_the_proof(platform: "Platform", monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is no repetition of the join; nothing is published."""
    honest: Any = point_in_time.point_in_time_join

    def without_ttl(spine: Any, views: Any) -> Any:
        return honest(spine, [dataclasses.replace(view, ttl=None) for view in views])

    monkeypatch.setattr(point_in_time, "point_in_time_join", without_ttl)
    path = platform.resources["lake"].path(link_key(platform.model, "training_set"), CUTOFF)
    before = path.read_bytes()
    ran = platform.declared(compute="spark").run("training_set", partition=CUTOFF)
    assert not ran.ok and "point_in_time_proof" in ran.failed
    assert path.read_bytes() == before
