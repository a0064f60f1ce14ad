"""A Spark task does the work as any other kind of compute does, on this machine and on a cluster of its own."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from resources.compute import ComputeResource, NoWorkerError, WorkerLostError, WorkFailedError
from resources.spark import session
from tests.resources.spark.cluster import cluster, free_port

pytestmark = pytest.mark.slow

HERE, OURS = "tests.resources.compute.errands", "tests.resources.spark.errands"
Do = Callable[..., Any]


@pytest.fixture
def do(home: Path) -> Do:
    """Have an asset ask for work; what it got, or what was raised. What it logged is `do.said`."""

    def asked(entrypoint: str, arguments: dict[str, Any], address: str = "", **resources: Any) -> Any:
        got: list[Any] = []

        @dg.asset
        def errand(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            compute = ComputeResource(kind="spark", address=address)
            got.append(compute.run(entrypoint, arguments, context, resources=resources))
            return dg.MaterializeResult()

        with dg.DagsterInstance.ephemeral() as instance:
            try:
                dg.materialize([errand], instance=instance)
            finally:
                events = instance.all_logs(instance.get_runs()[0].run_id)
                asked.said = "\n".join(event.user_message for event in events)  # type: ignore[attr-defined]
        return got[0]

    return asked


def test_what_the_task_logs_is_in_the_run(do: Do) -> None:
    do(f"{HERE}:talk", {"say": "trial 3: roc_auc 0.71"})
    assert "trial 3: roc_auc 0.71" in do.said  # type: ignore[attr-defined]


def test_an_error_of_the_task_is_told_with_its_traceback(do: Do) -> None:
    with pytest.raises(WorkFailedError, match=r"ValueError: no rows(.|\n)*errands.py"):
        do(f"{HERE}:fail", {"message": "no rows"})


def test_a_process_that_dies_is_reported_with_its_cause(do: Do) -> None:
    with pytest.raises(WorkerLostError, match=r"was killed by SIGKILL|for want of memory"):
        do(f"{HERE}:die", {"signal": signal.SIGKILL})
    with pytest.raises(WorkerLostError, match="exit code 3"):
        do(f"{HERE}:leave", {"code": 3})


def test_a_run_that_is_ended_ends_its_task(do: Do, tmp_path: Path) -> None:
    told = tmp_path / "pid"

    def interrupt() -> None:
        process(told)
        signal.raise_signal(signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    with pytest.raises((KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        do(f"{HERE}:tell_and_wait", {"path": str(told)})
    interrupting.join()
    process(told).wait(timeout=30)


def test_a_cluster_that_is_not_there_is_named_at_once(do: Do) -> None:
    """Before anything is started, and in seconds, where Spark itself would try for a minute."""
    session().stop()
    started, address = time.monotonic(), f"spark://127.0.0.1:{free_port()}"
    with pytest.raises(NoWorkerError, match=rf"No Spark master answers at {address}.*MLOPS_SPARK_MASTER"):
        do(f"{HERE}:talk", {"say": "nothing"}, address=address)
    assert time.monotonic() - started < 30


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    session().stop()  # a process has one session
    with cluster(tmp_path_factory.mktemp("spark")) as address:
        yield address
        session(address).stop()


def test_an_executor_that_is_killed_is_reported_or_replaced(do: Do, address: str, tmp_path: Path) -> None:
    """The work is one of another machine's processes; what became of it is Spark's word, and `retries` begins again."""
    for retries in (0, 1):
        told = tmp_path / f"pid {retries}"

        def kill(told: Path = told) -> None:
            next(one for one in process(told).parents() if one.name() == "java").kill()

        killing = threading.Thread(target=kill)
        killing.start()
        if retries:
            assert do(f"{OURS}:stay_once", {"path": str(told)}, address, retries=1) == {"begun": 2}
            assert "retries left: 0" in do.said  # type: ignore[attr-defined]
        else:
            with pytest.raises(WorkerLostError, match=r"lost with its Spark task \(.*ExecutorLostFailure"):
                do(f"{OURS}:stay_once", {"path": str(told)}, address)
        killing.join()


def test_work_that_finds_no_place_is_not_waited_for(do: Do, address: str) -> None:
    """Spark itself waits for ever for a worker of two cores."""
    with pytest.raises(NoWorkerError, match="within 5 s"):
        do(f"{HERE}:talk", {"say": "nothing"}, address, cpus=2, start_within_seconds=5)


def process(told: Path, seconds: float = 300) -> psutil.Process:
    """The process that wrote its id there."""
    until = time.monotonic() + seconds
    while not (told.exists() and told.read_text().split()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return psutil.Process(int(told.read_text().split()[-1]))
