"""Work in a pod: over the real client and the real wire, by a worker that is a process, whatever becomes of the pod."""

from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from resources.compute import ComputeResource
from tests.resources.kubernetes.api_server import Api

ERRANDS = "tests.resources.compute.errands"
Do = Callable[..., Any]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture
def do(cluster: Api) -> Do:
    """Have an asset ask for work in a pod; what it got, or what was raised. `do.told` is the run's log then."""

    def asked(entrypoint: str = "copy:copy", arguments: dict[str, Any] | None = None, **resources: Any) -> Any:
        got: list[Any] = []

        @dg.asset(key=["flights", "late_arrival", "candidate"])
        def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
            got.append(compute.run(entrypoint, arguments or {"rows": 3}, context, resources=resources))
            return dg.MaterializeResult()

        with dg.DagsterInstance.ephemeral() as instance:
            try:
                dg.materialize(
                    [errand],
                    instance=instance,
                    resources={"compute": ComputeResource(kind="kubernetes")},
                    run_config=QUIET,
                )
            finally:
                run = instance.get_runs()[0]
                asked.told = [event.user_message for event in instance.all_logs(run.run_id)]  # type: ignore[attr-defined]
        return got[0]

    return asked


def test_the_work_is_done_in_a_pod_that_is_gone_afterwards(do: Do, cluster: Api) -> None:
    """JSON in, JSON out; the pod is created, read, its log followed, and deleted."""
    assert do(arguments={"rows": 3, "keys": ["a"]}) == {"rows": 3, "keys": ["a"]}
    assert len(cluster.created) == 1
    assert any(line.startswith("DELETE") for line in cluster.asked)


def test_what_the_work_logs_is_in_the_run(do: Do) -> None:
    do(f"{ERRANDS}:talk", {"say": "trial 3: roc_auc 0.71"})
    assert any("trial 3: roc_auc 0.71" in line for line in do.told)  # type: ignore[attr-defined]
    assert any(line.endswith("runs") for line in do.told)  # type: ignore[attr-defined]
