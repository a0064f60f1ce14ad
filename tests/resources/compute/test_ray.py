"""A Ray cluster of this machine's own, and what it says of a worker that died."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resources.compute import NoWorkerError, Work, WorkerLostError
from resources.compute.ray import _imported
from resources.environment import PROJECT
from tests.resources.compute.conftest import Do

pytestmark = pytest.mark.slow

HERE = "tests.resources.compute.errands"
AT_ONCE = 30.0  # seconds, on a machine that does much besides


def ray_in(environment: dict[str, str], entrypoint: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """A run of its own, that starts a cluster of its own for one piece of work."""
    asked = f"from {HERE} import run; run({entrypoint!r}, {str(tmp_path)!r})"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command, found = [sys.executable, "-c", asked], clean | environment
    return subprocess.run(command, cwd=PROJECT, env=found, capture_output=True, text=True, timeout=400, check=False)


def test_a_cluster_of_our_own_listens_to_this_machine_alone_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """Every port is the loopback's, nobody else may enter its directory, and both are gone with the work."""
    done = ray_in({}, f"{HERE}:look_around", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads((tmp_path / "got.json").read_text())
    assert seen["ports"], "the work saw no port of the cluster it runs on"
    assert {ip for ip, _ in seen["ports"]} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert seen["mode"] == 0o700
    assert seen["token"], "anybody on this machine could have work done"
    assert not Path(seen["directory"]).exists()
    assert not [pid for pid in seen["processes"] if Path(f"/proc/{pid}").exists()]


def test_a_worker_that_ray_kills_for_memory_is_told_as_such(home: Path, tmp_path: Path) -> None:
    """Ray's own guard over the machine's memory, here with a limit that every machine is over."""
    limit = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    done = ray_in(limit, f"{HERE}:tell_and_wait", tmp_path)
    assert "WorkerLostError" in done.stderr
    assert "killed for want of memory" in done.stderr


def test_a_dead_worker_is_told_with_what_is_known_of_it(do: Do) -> None:
    """An exit code that Python told, a signal that stands in its output; of others, that they were gone at once."""
    with pytest.raises(WorkerLostError, match="ended with exit code 3"):
        do("ray", f"{HERE}:exit_by", {"code": 3})
    with pytest.raises(WorkerLostError, match="died of SIGSEGV"):
        do("ray", f"{HERE}:die", {"signal": signal.SIGSEGV})
    with pytest.raises(WorkerLostError, match=r"without a word, as by SIGKILL|for want of memory"):
        do("ray", f"{HERE}:die", {"signal": signal.SIGKILL})


def test_what_no_machine_holds_is_refused_at_once(do: Do) -> None:
    """Ray itself would wait for ever."""
    do("ray", "copy:copy", {})
    began = time.monotonic()
    with pytest.raises(NoWorkerError, match=r"this machine has not 8 GPU and 4000\.0 GiB of memory\. It has \d+ CPU"):
        do("ray", "copy:copy", {}, resources={"gpus": 8, "memory_gb": 4000})
    assert time.monotonic() - began < AT_ONCE


@pytest.mark.usefixtures("own_ray")
def test_a_later_cluster_has_the_token_that_this_process_reads_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads it once, the processes that it starts each time: somebody put the environment back in between."""
    before = os.environ["RAY_AUTH_TOKEN"]
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    _imported("", Work("none:none", {}))
    assert os.environ["RAY_AUTH_TOKEN"] == before


@pytest.mark.usefixtures("own_ray")
def test_work_for_another_cluster_does_not_run_on_this_one(do: Do) -> None:
    """A process is connected to one Ray cluster; what listens elsewhere is another."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(
            NoWorkerError, match=rf"connected to the Ray cluster of this machine's own, not to {address}"
        ):
            do("ray", "copy:copy", {}, address=address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1", "ray.invalid:6379", "nonsense://"])
def test_a_cluster_that_cannot_be_reached_is_named_at_once(do: Do, address: str) -> None:
    began = time.monotonic()
    with pytest.raises(NoWorkerError, match=f"{address} cannot be reached.*MLOPS_COMPUTE_ADDRESS"):
        do("ray", "copy:copy", {}, address=address)
    assert time.monotonic() - began < AT_ONCE


def test_the_worker_has_as_many_threads_as_its_asker(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's last bits depend on it, and Ray would give one for each CPU that is asked for."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert do("ray", f"{HERE}:threads", {}) == {"threads": os.cpu_count()}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert do("ray", f"{HERE}:threads", {}) == {"threads": 3}
    assert do("ray", f"{HERE}:threads", {}, resources={"cpus": 1.5}) == {"threads": 2}
