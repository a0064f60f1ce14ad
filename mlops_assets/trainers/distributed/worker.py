"""What each worker of a fit does, whoever started it: the very loop of a fit alone, on its part of each batch.

By torchelastic it is started as `python -m mlops_assets.trainers.distributed.worker DIRECTORY PARENT`.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from mlops_assets.trainers.distributed.job import Forward, Job
from mlops_assets.trainers.distributed.team import Share, Team
from mlops_assets.trainers.networks.fitting import Problem, Settings, fitted
from mlops_assets.trainers.networks.network import Network
from mlops_assets.trainers.torch import TorchLearner
from resources.parent import end_with

PATIENCE = timedelta(minutes=10)  # one worker waits so long for another: a step is milliseconds, a checkpoint seconds


def main() -> None:
    import torch.distributed as dist

    directory, parent = Path(sys.argv[1]), int(sys.argv[2])
    end_with(parent)
    job, rank = Job.read(directory), int(os.environ["RANK"])
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    with job.reported(rank):
        store = dist.FileStore(str(directory / f"group-{attempt}"), job.workers)
        dist.init_process_group(backend(job), store=store, rank=rank, world_size=job.workers, timeout=PATIENCE)
        work(job, rank, int(os.environ["LOCAL_RANK"]))
        dist.destroy_process_group()


def backend(job: Job) -> str:
    """What carries the gradients: NVIDIA's library between its GPUs, else gloo between processes."""
    return "nccl" if job.device.kind == "cuda" else "gloo"


def work(job: Job, rank: int, index: int) -> None:
    """Fit together with the others of the process group, which is there; on CUDA device `index`."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(job.threads)
    x, y = job.array("x"), job.array("y")
    team = Team(rank, job.workers, len(x))
    job.tell(log=[logging.INFO, f"worker {rank} of {job.workers}: process {os.getpid()} on {platform.node()}"])
    if team.leads:
        logger = logging.getLogger("mlops_assets")
        logger.setLevel(logging.INFO)
        logger.addHandler(Forward(job))
    problem = _problem(job, team, x, y)
    device = replace(job.device, index=index)
    if device.kind == "cuda":
        torch.cuda.set_device(index)  # NVIDIA's library speaks from the current one
    learner = TorchLearner(problem.network, problem.settings, device, job.precision, team)
    layers, epochs = fitted(learner, problem, job.progress(team.leads))
    if team.leads:
        job.publish(replace(problem.network, layers=layers, epochs=epochs))


def _problem(job: Job, team: Team, x: Any, y: Any) -> Problem:
    settings = Settings(**{name: _frozen(value) for name, value in job.settings.items()})
    valid = None
    if job.is_judged:
        x_valid, y_valid = (job.array(name) for name in ("x_valid", "y_valid"))
        mine = team.slice(len(x_valid))
        valid = (x_valid[mine].copy(), y_valid[mine].copy())
    rows, targets = (cast("Any", Share(array, team, settings.batch_size)) for array in (x, y))
    return Problem(Network.read(job.directory / "drawn"), rows, targets, valid, settings, job.seed)


def _frozen(value: Any) -> Any:
    """Settings hold tuples, JSON lists."""
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
