"""Who tries: this process, one trial after the other, or several workers at once.

The one who searches alone writes the journal, as trials end, in whatever order they do. A worker that dies is told in
the log and its trial run once more, from its checkpoint, by another; the second time it ends the search.

Workers import what is here: no Dagster, which would take longer than many a trial.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from mlops_assets.search.journal import FAIL, Line
from mlops_assets.search.trial import Asked, begun

Begin = Callable[[Asked], Callable[[], Line]]
"""Has a trial begun, or waiting for its turn; what it gives waits for the trial's end."""

logger = logging.getLogger(__name__)


class Workers(Protocol):
    """Several of one kind, that try one trial each at a time."""

    def begin(self, asked: Asked) -> None: ...

    def first(self) -> tuple[Asked, Line | Exception]:
        """The first that ends of those begun, and what it came to; WorkerLostError where the worker died."""
        ...

    def close(self) -> None:
        """End what still runs."""
        ...


@dataclass(frozen=True)
class There:
    """How a worker tries: a function by `package.module:function`, and arguments for it, which are JSON.

    It is given `{"arguments": ..., "trial": ...}`, the second an `Asked`, and returns the trial's line.
    """

    entrypoint: str
    arguments: Mapping[str, Any]

    def asks(self, asked: Asked) -> dict[str, Any]:
        return {"arguments": self.arguments, "trial": asked.document}


@contextmanager
def hands(
    search: Mapping[str, Any], here: Callable[[Asked], Line], there: There, write: Callable[[Line], None]
) -> Iterator[Begin]:
    """As many as the search has workers; `write` is given each line. What still runs when the block ends is ended."""
    if search["workers"] == 1 or search["trials"] == 1 or not search["space"]:
        yield lambda asked: partial(_by_itself, here, asked, write)
        return
    shared = _Shared(_workers(search, there), search["workers"], write)
    try:
        yield shared.begin
    finally:
        shared.workers.close()


def answered(there: There, asked: Asked, answer: Mapping[str, Any]) -> Line | Exception:
    """The line that a worker's answer holds, or the error that it tells of; its log is ours."""
    from resources.compute import OtherEnvironmentError, WorkFailedError

    for name, level, words in answer["logs"]:
        logging.getLogger(name).log(level, "trial %s: %s", asked.number, words)
    if differs := answer.get("differs"):
        return OtherEnvironmentError.of(differs)
    if failed := answer.get("failed"):
        return WorkFailedError.of(f"{there.entrypoint} (trial {asked.number}, {asked.params})", *failed)
    line: Line = answer["line"]
    return line


def _workers(search: Mapping[str, Any], there: There) -> Workers:
    """Each with its share of the threads that this process may use."""
    from mlops_assets.trainers import inside_ray, threads
    from resources.compute import NoWorkerError

    share = max(1, threads() // search["workers"])
    if search["over"] == "ray" and not inside_ray():
        raise NoWorkerError.of(
            there.entrypoint,
            "the search is to run over Ray, and this training does not run on Ray",
            'Train it with compute="ray", or leave Search(over="auto"): processes of this machine elsewhere.',
        )
    if search["over"] != "processes" and inside_ray():
        from mlops_assets.search.over_ray import Tasks

        return Tasks(there, share)
    from mlops_assets.search.over_processes import Processes

    return Processes(there, share)


def _by_itself(here: Callable[[Asked], Line], asked: Asked, write: Callable[[Line], None]) -> Line:
    line, clock = begun(asked) | {"state": FAIL}, time.monotonic()
    try:
        line = here(asked)
    finally:
        write({"seconds": time.monotonic() - clock, **line})
    return line


class _Shared:
    """Trials in a queue before workers."""

    def __init__(self, workers: Workers, number: int, write: Callable[[Line], None]) -> None:
        self.workers, self._free, self._write = workers, number, write
        self._queue: deque[Asked] = deque()
        self._lines: dict[int, Line] = {}
        self._begun: dict[int, tuple[Line, float]] = {}
        self._again: set[int] = set()

    def begin(self, asked: Asked) -> Callable[[], Line]:
        self._queue.append(asked)
        self._fill()
        return partial(self._line, asked.number)

    def _fill(self) -> None:
        while self._free and self._queue:
            asked = self._queue.popleft()
            self._begun[asked.number] = begun(asked), time.monotonic()
            self.workers.begin(asked)
            self._free -= 1

    def _line(self, number: int) -> Line:
        while number not in self._lines:
            asked, told = self.workers.first()
            self._free += 1
            if isinstance(told, Exception):
                self._went_wrong(asked, told)
            else:
                self._write(told)
                self._lines[asked.number] = told
            self._fill()
        return self._lines.pop(number)

    def _went_wrong(self, asked: Asked, problem: Exception) -> None:
        from resources.compute import WorkerLostError

        if isinstance(problem, WorkerLostError) and asked.number not in self._again:
            logger.warning("trial %s is run again: %s", asked.number, problem)
            self._again.add(asked.number)
            self._queue.appendleft(asked)
            return
        line, clock = self._begun[asked.number]
        self._write(line | {"state": FAIL, "seconds": time.monotonic() - clock})
        raise problem
