"""A process of its own on this machine, by Dagster Pipes: what kills it does not take the run with it, and says why.

Its log lines, and what it reports, arrive in the asset's run while it works.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

from dagster import PipesSubprocessClient
from dagster._core.errors import DagsterPipesExecutionError

from resources.compute import EntrypointError, OtherEnvironmentError, Work, WorkerLostError, WorkFailedError
from resources.environment import PROJECT

WORKER = "resources.compute._worker"
SHUTDOWN_SECONDS = 20.0
STARVED = ("was killed for want of memory", "Give the machine more, or train on fewer rows (TimeSplit(window=...)).")


def run(work: Work) -> dict[str, Any]:
    client = PipesSubprocessClient(cwd=str(PROJECT), termination_timeout_seconds=SHUTDOWN_SECONDS)
    starved = kills_for_memory()
    try:
        done = client.run(context=work.asking, command=[work.python, "-m", WORKER], extras=work.document)
    except DagsterPipesExecutionError as problem:
        ended = death(_code(str(problem)), kills_for_memory() > starved)
        raise WorkerLostError.of(work.entrypoint, *ended) from problem
    return answer(work, done.get_custom_messages())


def answer(work: Work, messages: Any) -> dict[str, Any]:
    """The result that a worker reported; what went wrong there is raised here."""
    told: dict[str, Any] = next((one for one in reversed(messages) if isinstance(one, dict)), {})
    if "result" in told:
        result: dict[str, Any] = told["result"]
        return result
    if differs := told.get("differs"):
        raise OtherEnvironmentError.of({name: tuple(pair) for name, pair in differs.items()})
    if unknown := told.get("entrypoint"):
        raise EntrypointError(unknown)
    if failed := told.get("failed"):
        raise WorkFailedError.of(work.entrypoint, *failed)
    raise WorkerLostError.of(work.entrypoint, "ended without a result", "Look at its output in the run's logs.")


def _code(problem: str) -> int:
    found = re.search(r"code (-?[0-9]+)", problem)
    return int(found[1]) if found else 1


def death(code: int, starved: bool = False) -> tuple[str, str]:
    """What a process died of, by its exit code (of a signal -9, or 137 by a shell), and what to do about it."""
    if starved:
        return STARVED
    code = 128 - code if code > 128 else code
    if code >= 0:
        return f"ended with exit code {code}", "Look at its output in the run's logs."
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL:
        return f"was killed by {name}", "Somebody or the operating system did it; run it again."
    return f"died of {name}", "Look at its output in the run's logs; a fault in a native library ends like this."


def kills_for_memory() -> int:
    """How often the kernel killed a process for memory so far: in this container, else on this machine."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        if path.exists():
            counts = dict(line.split() for line in path.read_text().splitlines() if len(line.split()) == 2)
            return int(counts.get("oom_kill", 0))
    return 0
