"""An asset that asks for work; one Ray cluster of this machine's own for a module, since starting one takes long."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from resources.compute import ComputeResource, Work
from resources.compute.ray import cluster

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
Do = Callable[..., Any]


@pytest.fixture
def do(home: Path, request: pytest.FixtureRequest) -> Do:
    """Have an asset ask for work on a kind of machine; what it got, or what was raised. `do.events` is its log then."""

    def asked(
        kind: str,
        entrypoint: str,
        arguments: Mapping[str, Any],
        resources: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        server = {"kubernetes": "cluster", "ray": "own_ray"}.get(kind)
        if server and "address" not in settings:
            request.getfixturevalue(server)
        got: list[Any] = []

        @dg.asset
        def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
            got.append(compute.run(entrypoint, arguments, context, resources=resources))
            return dg.MaterializeResult()

        compute = ComputeResource(kind=kind, **settings)
        with dg.DagsterInstance.ephemeral() as instance:
            try:
                dg.materialize([errand], instance=instance, resources={"compute": compute}, run_config=QUIET)
            finally:
                asked.events = instance.all_logs(instance.get_runs()[0].run_id)  # type: ignore[attr-defined]
        return got[0]

    return asked


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """Work on Ray finds this cluster, as several works of one run do."""
    if "RAY_ADDRESS" in os.environ:
        pytest.fail("RAY_ADDRESS names a cluster; these tests start their own. Unset it.")
    with cluster("", Work("none:none", {})):
        yield


@pytest.fixture
def other_python(tmp_path: Path) -> str:
    """An interpreter of this environment but for Polars, which is another version where it looks first."""
    other = tmp_path / "polars-0.1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: polars\nVersion: 0.1.0\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)
