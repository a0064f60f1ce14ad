"""Workers that are processes of this machine, watched by torchelastic: one that dies has all begin again.

They begin again from the last checkpoint, `RESTARTS` times at most. The agent that watches them is a process of its
own, `python -m mlops_assets.trainers.distributed.processes DIRECTORY PARENT`: it may then handle signals, and a fit
that is given up ends with it. The workers find each other by a file and speak over the loopback interface alone.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlops_assets.checkpoints import publish
from mlops_assets.trainers.distributed.job import Forward, Job
from mlops_assets.trainers.distributed.lost import RESTARTS, LostWorkersError, TooManyWorkersError
from resources.environment import PROJECT
from resources.hardware import this_machine
from resources.parent import end_with

WORKER, LOST = "mlops_assets.trainers.distributed.worker", "lost.json"
GRACE_SECONDS = 5


def refuse(job: Job) -> None:
    """Raises TooManyWorkersError for more workers on CUDA than this machine has GPUs."""
    gpus = len(this_machine().nvidia)
    if job.device.kind == "cuda" and job.workers > gpus:
        raise TooManyWorkersError.of(job.workers, 1, "GPU", gpus, "this machine")


@contextmanager
def running(job: Job) -> Iterator[Callable[[float], bool]]:
    """Start the workers; yields what waits for so many seconds and says whether they are done.

    It raises LostWorkersError. Workers still at it when the block ends are ended with it.
    """
    command = [sys.executable, "-m", __name__, str(job.directory), str(os.getpid())]
    agent = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, **_surroundings(job)})

    def ended(seconds: float) -> bool:
        try:
            code = agent.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if code:
            raise LostWorkersError.of(job.workers, _deaths(job.directory, code), job.raised())
        return True

    try:
        yield ended
    finally:
        agent.terminate()
        try:
            agent.wait(2 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
        _end_team(job.directory)


def _end_team(directory: Path) -> None:
    """Workers whose agent was killed end by themselves, a moment later: until then they write to the directory."""
    import psutil

    team = [one for one in psutil.process_iter(["cmdline"]) if str(directory) in (one.info["cmdline"] or [])]
    _, alive = psutil.wait_procs(team, GRACE_SECONDS)
    for one in alive:
        one.kill()
    psutil.wait_procs(alive)


def _surroundings(job: Job) -> dict[str, str]:
    """Nothing listens but on loopback, and the cores are divided."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        "OMP_NUM_THREADS": str(job.threads),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def _deaths(directory: Path, code: int) -> list[str]:
    """What the workers died of, told by the agent; or that the agent itself died."""
    path = directory / LOST
    if not path.is_file():
        return [f"the agent that watched them {_death(code)}"]
    exits: dict[str, int] = json.loads(path.read_bytes())
    closed = -signal.SIGTERM  # how the agent ends the rest of a team that lost one
    return [f"worker {rank} {_death(code)}" for rank, code in exits.items() if code < 0 and code != closed] or [
        f"worker {rank} {_death(code)}" for rank, code in exits.items()
    ]


def _death(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def main() -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    directory, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with(parent)
    job = Job.read(directory)
    logging.getLogger("torch.distributed.elastic").addHandler(Forward(job, logging.WARNING))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.workers,
        run_id="fit",
        rdzv_backend="c10d",
        rdzv_endpoint=str(directory / "meeting"),
        rdzv_configs={"store_type": "file"},
        local_addr="127.0.0.1",
        max_restarts=RESTARTS,
        shutdown_timeout=GRACE_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", WORKER, str(directory), str(os.getpid()))
    except ChildFailedError as problem:
        exits = {rank: failure.exitcode for rank, failure in problem.failures.items()}
        publish(directory / LOST, json.dumps(exits).encode())
        sys.exit(1)


if __name__ == "__main__":
    main()
