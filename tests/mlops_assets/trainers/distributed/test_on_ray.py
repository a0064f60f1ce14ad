"""On a Ray cluster the workers are Ray Train's, and come to the very model that processes come to."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mlops_assets.trainers.networks.network import Network
from resources.compute import ComputeResource
from tests.mlops_assets.trainers.distributed.fits import equal, fit

pytestmark = pytest.mark.slow

ERRAND = "tests.mlops_assets.trainers.distributed.fits:errand"


def test_a_training_on_ray_is_shared_there_and_survives_a_killed_worker(home: Path, tmp_path: Path) -> None:
    """Two workers on a cluster of two cores, one killed in the middle: all begin again from the last checkpoint.

    The training itself holds both cores, and lends them to its workers while it waits. One that is given up leaves
    no worker behind.
    """
    got: dict[str, Any] = {}

    @dg.asset
    def model(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
        got.update(compute.run(ERRAND, {"path": str(tmp_path)}, context, resources={"cpus": 2}))
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize([model], instance=instance, resources={"compute": ComputeResource(kind="ray")})
    lines = "\n".join(got["said"])
    assert "fitted by 2 workers of 1 threads, on_ray" in lines and "continuing a after" in lines
    assert lines.count("worker 1 of 2: process") == 2
    assert got["left"] == []
    assert equal(Network.read(tmp_path), fit(workers=2))
