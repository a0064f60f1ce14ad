"""Workers that Ray Train starts and watches, on the cluster that the training itself is a task of.

They may be on other machines than it; then the checkpoints must lie on a disk that all of them see, at the same place.
A worker or a node that is lost has all begin again from the last checkpoint, `RESTARTS` times at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlops_assets.trainers.distributed.job import Job
from mlops_assets.trainers.distributed.lost import RESTARTS, LostWorkersError, TooManyWorkersError

STOP_SECONDS = 15.0


def refuse(job: Job) -> None:
    """Raises TooManyWorkersError for workers that the whole cluster has no place for: they would wait for ever."""
    import ray

    what, each = ("GPU", 1) if job.device.kind == "cuda" else ("CPU", job.threads)
    there = int(ray.cluster_resources().get(what, 0))
    if job.workers * each > there:
        raise TooManyWorkersError.of(job.workers, each, what, there, "the Ray cluster")


@contextmanager
def running(job: Job) -> Iterator[Callable[[float], bool]]:
    """As `processes.running`. The driver of Ray Train is a task of its own, so that it can be broken off."""
    import ray

    fit = ray.remote(num_cpus=0, max_retries=0)(_fit).remote(str(job.directory))

    def ended(seconds: float) -> bool:
        done, _ = ray.wait([fit], timeout=seconds)
        if not done:
            return False
        try:
            ray.get(fit)
        except ray.exceptions.RayTaskError as problem:
            raise LostWorkersError.of(job.workers, _causes(problem.cause), job.raised()) from problem
        return True

    try:
        yield ended
    finally:
        ray.cancel(fit)
        ray.wait([fit], timeout=STOP_SECONDS)


def _causes(problem: Exception) -> list[str]:
    failures: dict[int, Exception] = getattr(problem, "worker_failures", {})
    return [f"worker {rank}: {failure}" for rank, failure in failures.items()] or [str(problem)]


def _fit(directory: str) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from mlops_assets.trainers.distributed.worker import PATIENCE, backend

    job = Job.read(Path(directory))
    on_gpus = job.device.kind == "cuda"
    TorchTrainer(
        _worker,
        train_loop_config={"directory": directory},
        torch_config=TorchConfig(backend(job), timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=on_gpus,
            resources_per_worker={"CPU": job.threads} | ({"GPU": 1} if on_gpus else {}),
        ),
        run_config=RunConfig(
            name="train", storage_path=str(job.directory / "ray"), failure_config=FailureConfig(max_failures=RESTARTS)
        ),
    ).fit()


def _worker(told: dict[str, Any]) -> None:
    from ray.train import get_context
    from ray.train.torch import get_device

    from mlops_assets.trainers.distributed.worker import work

    job, rank = Job.read(Path(told["directory"])), get_context().get_world_rank()
    with job.reported(rank):
        work(job, rank, getattr(get_device(), "index", None) or 0)
