"""A task on a Spark cluster, or on this machine's cores (`local[*]`), which starts the process that does the work.

The address is the resource's (MLOPS_COMPUTE_ADDRESS), else MLOPS_SPARK_MASTER. The project and MLOPS_HOME lie at the
same place on every machine: what the work says arrives by a file there. Of what the work needs of a machine Spark knows
`cpus` and `gpus`, and on `local[*]` none: the memory is the executor's. See `resources.spark` for the session.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil
from typing import Any

import dagster as dg

from resources.compute import NoWorkerError, Work, WorkerLostError
from resources.compute.subprocess import WORKER, answer, death
from resources.environment import PROJECT, home
from resources.spark import ClusterUnreachableError, SparkUnavailableError, session
from resources.spark.errand import errand

LOOK_SECONDS = 0.2


def run(work: Work) -> dict[str, Any]:
    context = work.asking
    try:
        spark = session(work.address)
    except (ClusterUnreachableError, SparkUnavailableError) as problem:
        raise NoWorkerError.of(work.entrypoint, str(problem), "Nothing was started.") from problem
    messages = home() / "work" / "compute" / f"{secrets.token_hex(8)}.messages"
    messages.parent.mkdir(parents=True, exist_ok=True)
    with dg.open_pipes_session(
        context=context,
        context_injector=dg.PipesEnvContextInjector(),
        message_reader=dg.PipesFileMessageReader(str(messages), include_stdio_in_messages=True),
        extras=work.document,
    ) as pipes:
        asked = {
            "python": "" if work.python == sys.executable else work.python,
            "module": WORKER,
            "project": str(PROJECT),
            "environment": {**work.environment, **pipes.get_bootstrap_env_vars()},
        }
        ended = _Task(spark, work, asked).ended()
    if ended["code"]:
        raise WorkerLostError.of(work.entrypoint, *death(ended["code"], ended["starved"]))
    return answer(work, pipes.get_custom_messages())


class _Task:
    """One task of a job of its own, which can be looked at and ended."""

    def __init__(self, spark: Any, work: Work, asked: Mapping[str, Any]) -> None:
        self._context, self._work, self._asked = spark.sparkContext, work, asked
        self._group = f"mlops-{secrets.token_hex(8)}"

    def ended(self) -> dict[str, Any]:
        """How its process ended. Raises WorkerLostError, and NoWorkerError where it found no place in time."""
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(self._done)
            try:
                self._await(job)
            except BaseException:  # the run was ended, or nobody came: so is the work
                self._context.cancelJobGroup(self._group)
                raise
        try:
            ended = job.result()
        except Exception as problem:  # Spark's errors are Java's, as Py4J tells them
            raise self._lost() from problem
        if "again" in ended:
            raise self._lost()
        return ended

    def _done(self) -> dict[str, Any]:
        self._context.setJobGroup(self._group, self._work.entrypoint, interruptOnCancel=True)
        task = self._context.parallelize([dict(self._asked)], 1)
        if profile := self._profile():
            task = task.withResources(profile)
        found: dict[str, Any] = task.map(errand).collect()[0]
        return found

    def _profile(self) -> Any:
        """What the task takes of a machine; Spark refuses to be told on `local[*]`."""
        from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

        cpus, gpus = self._work.resources.get("cpus"), self._work.resources.get("gpus")
        if not (cpus or gpus) or self._context.master.startswith("local"):
            return None
        wanted = TaskResourceRequests()
        wanted = wanted.cpus(ceil(cpus)) if cpus else wanted
        wanted = wanted.resource("gpu", gpus) if gpus else wanted
        return ResourceProfileBuilder().require(wanted).build

    def _await(self, job: Future[dict[str, Any]]) -> None:
        patience = self._work.resources.get("start_within_seconds", float("inf"))
        until = time.monotonic() + patience
        while not job.done():
            time.sleep(LOOK_SECONDS)
            if time.monotonic() > until and not self._begun():
                raise NoWorkerError.of(
                    self._work.entrypoint,
                    f"no executor of {self._context.master} took it within {patience:g} s",
                    "Start workers with as many free cores as it asks for, ask for less, or declare a longer "
                    "start_within.",
                )

    def _begun(self) -> bool:
        told = self._context.statusTracker()
        stages = [told.getStageInfo(number) for number in self._stages()]
        return any(one and (one.numActiveTasks or one.numCompletedTasks or one.numFailedTasks) for one in stages)

    def _stages(self) -> list[int]:
        told = self._context.statusTracker()
        jobs = [told.getJobInfo(number) for number in told.getJobIdsForGroup(self._group)]
        return [stage for job in jobs if job for stage in job.stageIds]

    def _lost(self) -> WorkerLostError:
        """What Spark says of the first attempt: the executor's exit code, or what it could not import."""
        reasons = [reason for stage in self._stages() for reason in self._reasons(stage)]
        said = next((reason for reason in reasons if reason), "Spark gives no reason").strip().splitlines()
        last = said[-1] if "Traceback" in said[0] or "PythonException" in said[0] else said[0]
        return WorkerLostError.of(
            self._work.entrypoint, f"was lost with its Spark task ({last})", "See the executor's log; run it again."
        )

    def _reasons(self, stage: int) -> list[str]:
        """Of each attempt of the stage's task, why it failed; Spark keeps it for its UI, also where that is off."""
        store = self._context._jsc.sc().statusStore()  # noqa: SLF001  Python's own API does not show it
        tasks = store.taskList(stage, 0, 100)
        found = sorted((tasks.apply(place) for place in range(tasks.size())), key=lambda task: task.attempt())
        return [task.errorMessage().get() for task in found if task.errorMessage().isDefined()]
