"""Work on a Ray cluster far away, by its job API: this project's code is sent along, the job's process is the worker.

Ray knows how such a process ended. Its messages are lines of its output, which dagster-ray follows.
"""

from __future__ import annotations

import secrets
import sys
import time
from contextlib import suppress
from typing import Any

import dagster as dg

from resources.compute import NoWorkerError, Work, WorkerLostError
from resources.compute.ray import asked_of_ray, place, reach, unreachable
from resources.compute.subprocess import WORKER, answer, death
from resources.environment import PROJECT

POLL, GIVEN_UP = 0.5, 30.0  # seconds: between two questions, and without an answer


def run(work: Work, address: str) -> dict[str, Any]:
    from dagster_ray.core.pipes import PipesRayJobMessageReader

    client = _client(work, address)
    with dg.open_pipes_session(
        context=work.asking,
        context_injector=dg.PipesEnvContextInjector(),
        message_reader=PipesRayJobMessageReader(),
        extras=work.document,
    ) as session:
        job = f"mlops-{secrets.token_hex(8)}"
        client.submit_job(submission_id=job, **_submitted(work, session))
        try:
            _await_a_place(work, client, job)
            # only now: its reader would follow a job that never begins for ever
            session.report_launched({"extras": {"ray_job_id": job, "ray_address": client.get_address()}})
            details = _ended(work, client, job)
        except BaseException:  # the run was ended, or nothing came of it: so is its job, at the latest when it begins
            with suppress(ConnectionError, RuntimeError):  # of a cluster that is gone
                client.stop_job(job)
            raise
    if details.status == "SUCCEEDED":
        return answer(work, session.get_custom_messages())
    raise _loss(work, details)


def _client(work: Work, address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    reach(address, work, 443 if address.startswith("https") else 80)
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as problem:
        raise unreachable(work, address, problem) from problem


def _submitted(work: Work, session: Any) -> dict[str, Any]:
    """The job. Its interpreter is the cluster's own, unless another was named."""
    python = "python" if work.python == sys.executable else work.python
    variables = {**work.environment, **session.get_bootstrap_env_vars()}
    return {
        "entrypoint": f"exec {python} -m {WORKER}",  # exec: its end is the job's
        "runtime_env": {"working_dir": str(PROJECT), "excludes": [".git"], "env_vars": variables},
        "metadata": {"dagster/run_id": work.asking.run.run_id},
        **asked_of_ray(work, "entrypoint_"),
        **place(work, "entrypoint_"),
    }


def _await_a_place(work: Work, client: Any, job: str) -> None:
    """Until the job has begun. NoWorkerError where it got no place in time."""
    patience = time.monotonic() + work.resources.get("start_within_seconds", float("inf"))
    while (details := _asked(work, client, job)).status == "PENDING":
        if time.monotonic() > patience:
            busy = f"none of the cluster became free in time: {details.message}"
            raise NoWorkerError.of(work.entrypoint, busy, "Ask for less, or declare a longer start_within.")
        time.sleep(POLL)


def _ended(work: Work, client: Any, job: str) -> Any:
    """What Ray says of the job once it has ended."""
    while not (details := _asked(work, client, job)).status.is_terminal():
        time.sleep(POLL)
    return details


def _asked(work: Work, client: Any, job: str) -> Any:
    """What Ray says of the job now; WorkerLostError where it has said nothing for long."""
    given_up = time.monotonic() + GIVEN_UP
    while True:
        try:
            return client.get_job_info(job)
        except (ConnectionError, RuntimeError) as problem:
            if time.monotonic() > given_up:
                lost = f"was lost with its cluster ({problem})"
                raise WorkerLostError.of(work.entrypoint, lost, "See the cluster; run it again.") from problem
        time.sleep(POLL)


def _loss(work: Work, details: Any) -> Exception:
    said = str(details.message).partition(", last available logs")[0]
    if "runtime_env" in said and details.driver_exit_code is None:
        return NoWorkerError.of(work.entrypoint, f"its machine could not be prepared: {said}", "See the cluster.")
    if details.status == "STOPPED":
        return WorkerLostError.of(work.entrypoint, "was stopped", "Somebody did it in Ray; run it again.")
    if details.driver_exit_code is None:
        return WorkerLostError.of(work.entrypoint, f"was lost with its machine ({said})", "See the cluster.")
    return WorkerLostError.of(work.entrypoint, *death(details.driver_exit_code))
