"""Trials over processes of this machine, each with its share of the threads, that load the rows once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from selectors import EVENT_READ, DefaultSelector
from typing import IO, cast

from mlops_assets.search.hands import There, answered
from mlops_assets.search.journal import Line
from mlops_assets.search.trial import Asked
from resources.compute import WorkerLostError
from resources.compute.subprocess import death, kills_for_memory

WORKER = "mlops_assets.search.worker"


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[str]
    requests: IO[str]
    answers: IO[str]


class Processes:
    """As many as are busy at once: one is started when none is idle."""

    def __init__(self, there: There, threads: int) -> None:
        self._there, self._starved = there, kills_for_memory()
        # imports what this process does, and computes on its share alone
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._idle: list[_Worker] = []
        self._busy = DefaultSelector()

    def begin(self, asked: Asked) -> None:
        worker = self._idle.pop() if self._idle else self._started()
        self._busy.register(worker.answers, EVENT_READ, (worker, asked))
        with suppress(BrokenPipeError):  # it died idle: `first` finds it
            worker.requests.write(json.dumps(self._there.asks(asked)) + "\n")
            worker.requests.flush()

    def first(self) -> tuple[Asked, Line | Exception]:
        (key, _), *_ = self._busy.select()
        self._busy.unregister(key.fileobj)
        worker, asked = key.data
        answer = worker.answers.readline()
        if not answer.endswith("\n"):
            return asked, self._loss(worker)
        self._idle.append(worker)
        return asked, answered(self._there, asked, json.loads(answer))

    def close(self) -> None:
        for worker in [*self._idle, *(key.data[0] for key in self._busy.get_map().values())]:
            worker.process.kill()
            self._reap(worker)
        self._busy.close()

    def _started(self) -> _Worker:
        command = [sys.executable, "-m", WORKER, self._there.entrypoint]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=self._environment)
        return _Worker(process, cast("IO[str]", process.stdin), cast("IO[str]", process.stdout))

    def _loss(self, worker: _Worker) -> WorkerLostError:
        code = self._reap(worker)
        before, self._starved = self._starved, kills_for_memory()
        return WorkerLostError.of(self._there.entrypoint, *death(code, self._starved > before))

    def _reap(self, worker: _Worker) -> int:
        with suppress(BrokenPipeError):
            worker.requests.close()
        worker.answers.close()
        return worker.process.wait()
