"""Ray clusters that are there already, of several nodes: by their own address, and by their job API."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from resources.compute import NoWorkerError, OtherEnvironmentError, WorkerLostError, WorkFailedError
from resources.environment import PROJECT
from tests.resources.compute.conftest import Do
from tests.resources.conftest import free_port, wait_until

pytestmark = pytest.mark.slow

HERE = "tests.resources.compute.errands"
SOON, LONG = 60.0, 240.0  # seconds, on a machine that does much besides


@pytest.fixture(scope="module")
def far() -> Iterator[Any]:
    """A cluster of one small node with a dashboard, whose job API answers."""
    from resources.compute import Work
    from resources.compute.ray import _imported

    _imported("", Work("none:none", {}))  # on the loopback, with a token
    from ray.cluster_utils import Cluster

    port, before = free_port(), os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{before}"  # the job API starts the cluster's own `python`
    # Port 0: any that is free. Ray gives every head the same, and a second cluster of this machine no job API.
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
    dashboard["dashboard_agent_listen_port"] = 0
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20, **dashboard}
    )
    cluster.api = f"http://127.0.0.1:{port}"
    try:
        yield cluster
    finally:
        os.environ["PATH"] = before
        cluster.shutdown()


@pytest.fixture(params=["node", "job API"])
def address(far: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    return str(far.address if request.param == "node" else far.api)


def test_work_is_done_and_what_it_logs_is_in_the_run(do: Do, address: str) -> None:
    assert do("ray", "copy:copy", {"rows": 3}, address=address) == {"rows": 3}
    do("ray", f"{HERE}:talk", {"say": "trial 3: roc_auc 0.71"}, address=address)
    assert any("trial 3: roc_auc 0.71" in event.user_message for event in do.events)  # type: ignore[attr-defined]


def test_what_goes_wrong_there_is_told_here(do: Do, address: str) -> None:
    """An error with its traceback; a worker that left, with its exit code; the cluster serves the next."""
    with pytest.raises(WorkFailedError, match=r"ValueError: no rows(.|\n)*errands.py"):
        do("ray", f"{HERE}:fail", {"message": "no rows"}, address=address)
    with pytest.raises(WorkerLostError, match="ended with exit code 3"):
        do("ray", f"{HERE}:exit_by", {"code": 3}, address=address)


def test_a_job_that_is_killed_is_told_with_the_signal(do: Do, far: Any) -> None:
    with pytest.raises(WorkerLostError, match="was killed by SIGKILL"):
        do("ray", f"{HERE}:die", {"signal": signal.SIGKILL}, address=far.api)


def test_a_cluster_without_room_is_not_waited_for_without_end(do: Do, address: str) -> None:
    """It may grow, and so it is waited for: as long as declared. What is free is told."""
    began = time.monotonic()
    with pytest.raises(NoWorkerError, match=r"none of the cluster became free in time: .*start_within"):
        do("ray", "copy:copy", {}, resources={"cpus": 64, "start_within_seconds": 3.0}, address=address)
    assert time.monotonic() - began < SOON


def test_a_run_that_is_cancelled_ends_its_work(home: Path, address: str, tmp_path: Path) -> None:
    """SIGTERM is how Dagster ends a run; the cluster stays, the work does not."""
    told = tmp_path / "pid"
    ask = f"from {HERE} import ask; ask({str(told)!r}, 'ray', {address!r})"
    run = subprocess.Popen([sys.executable, "-c", ask], cwd=PROJECT)
    wait_until(lambda: told.exists() and bool(told.read_text()), "the work's begin", LONG)
    worker = psutil.Process(int(told.read_text()))
    run.send_signal(signal.SIGTERM)
    worker.wait(timeout=SOON)
    run.wait(SOON)
    assert run.returncode != 0


def test_other_packages_are_named_before_a_job_begins(do: Do, far: Any, other_python: str) -> None:
    with pytest.raises(OtherEnvironmentError, match=r"polars 0\.1\.0 instead of \d"):
        do("ray", "copy:copy", {}, python=other_python, address=far.api)


# -- with more nodes. Here they share one directory, which code sent by the job API does not bear: it is not needed.


def test_work_is_done_where_its_labels_are(do: Do, far: Any, address: str) -> None:
    """`node_selector` means what it means on Kubernetes; a label that no node has is waited for as room is."""
    named = {"node_selector": {"mlops/node": "oslo"}, "start_within_seconds": 5.0}
    with pytest.raises(NoWorkerError, match="none of the cluster became free in time"):
        do("ray", "copy:copy", {}, resources=named, address=address)
    node = far.add_node(num_cpus=1, object_store_memory=100 << 20, labels=named["node_selector"])
    try:
        assert do("ray", "copy:copy", {"rows": 3}, resources=named | {"start_within_seconds": SOON}, address=address)
    finally:
        far.remove_node(node)


def works(node: Any) -> bool:
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("_errand" in " ".join(one.cmdline()) for one in raylet.children(recursive=True))


def test_a_machine_that_is_lost_is_told_and_the_work_done_on_another(do: Do, far: Any, tmp_path: Path) -> None:
    """Of two nodes with room, the one that works goes while it does."""
    told = tmp_path / "pids"
    nodes = [far.add_node(num_cpus=4, object_store_memory=100 << 20) for _ in range(2)]

    def lose() -> None:
        wait_until(lambda: told.exists() and bool(told.read_text()), "the work's begin", LONG)
        far.remove_node(next(node for node in nodes if works(node)), allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    resources = {"cpus": 3, "retries": 1}
    got = do("ray", f"{HERE}:wait_at_first", {"path": str(told)}, resources=resources, address=far.address)
    thread.join()
    assert got == {"begun": 2}
    assert any("It is begun again" in event.user_message for event in do.events)  # type: ignore[attr-defined]
