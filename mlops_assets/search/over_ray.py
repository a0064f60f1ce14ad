"""Trials over tasks of the Ray cluster that the training itself runs on: each asks for its share of the threads.

The training waits for them in Ray's own way, which lends its cores to them meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops_assets.search.hands import There, answered
from mlops_assets.search.journal import Line
from mlops_assets.search.trial import Asked
from resources.compute import PACKAGES, WorkerLostError, versions
from resources.compute._worker import differences


class Tasks:
    """One a trial; Ray keeps their processes, with the rows that they loaded."""

    def __init__(self, there: There, threads: int) -> None:
        import ray

        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        self._there, self._packages = there, versions(PACKAGES)
        self._task = ray.remote(num_cpus=threads, max_retries=0, runtime_env=environment)(_answer)
        self._running: dict[Any, Asked] = {}

    def begin(self, asked: Asked) -> None:
        task = self._task.remote(self._there.entrypoint, self._there.asks(asked), self._packages)
        self._running[task] = asked

    def first(self) -> tuple[Asked, Line | Exception]:
        import ray

        (task, *_), _ = ray.wait(list(self._running))
        asked = self._running.pop(task)
        try:
            return asked, answered(self._there, asked, ray.get(task))
        except ray.exceptions.RayError as problem:
            return asked, self._loss(problem)

    def close(self) -> None:
        import ray

        for task in self._running:
            ray.cancel(task, force=True)

    def _loss(self, problem: Exception) -> WorkerLostError:
        told = " ".join(str(problem).split())
        return WorkerLostError.of(
            self._there.entrypoint, f"was lost by Ray ({type(problem).__name__}: {told})", "Look at Ray's own logs."
        )


def _answer(entrypoint: str, request: Mapping[str, Any], packages: dict[str, str]) -> dict[str, Any]:
    from mlops_assets.search.worker import answer

    differs = differences(packages)
    return {"differs": differs, "logs": []} if differs else answer(entrypoint, request)
