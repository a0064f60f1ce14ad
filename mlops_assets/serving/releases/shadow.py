"""The shadow: a release that is told what the others are asked, and answers nobody but the prediction log.

It answers in a process of its own, of the lowest priority, with its own look-ups: however slow or broken it is, no
caller can tell. What it is told goes into a bounded queue and from there, by a thread, into a pipe; rows for which
there is no room are counted and dropped. One that dies is started again a few times, then given up, with the reason.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from mlops_assets.serving import metrics
from mlops_assets.serving.answers import Question
from mlops_assets.serving.releases.told import Told
from resources.release_record import Variant

QUEUE_ROWS = 20_000  # two of the largest requests; about 20 MB at worst
QUEUE_QUESTIONS = 2_000  # more objects, and the garbage collector would stop every answer for milliseconds
SEND_SECONDS = 0.05
SLICE_ROWS = 64  # about 0.1 ms of the interpreter that answers too
ASIDE_SECONDS = 0.0002
RESTARTS = 3
PAUSE_SECONDS = 1.0  # before a restart, twice as long every time
SETTLED_SECONDS = 60.0  # one that lived so long has all its restarts again
GRACE_SECONDS = 2.0  # to write its log when it is ended
READY = "ready"  # what it says on its output, or why it cannot be
PROJECT = Path(__file__).resolve().parents[2]
logger = logging.getLogger(__name__)


class Shadow:
    """What one process tells the shadow of one model, and the process that the shadow is.

    `failure` says why there is none any more: it does not load, or died again and again.
    """

    def __init__(self, model: str, variant: Variant, bundle: Path) -> None:
        self.variant = variant
        self.failure: str | None = None
        self._argv = [model, variant.release, variant.version, str(bundle)]
        self._dropped = metrics.SHADOW_DROPPED.labels(model, variant.release)
        self._queue: list[Told] = []
        self._rows = 0
        self._lost = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def tell(self, question: Question, names: Sequence[str] = ()) -> None:
        """Pass on a question, and the names of the inputs of the release that was asked it. Never waits."""
        size = len(question.ids)
        with self._lock:
            if self._rows + size <= QUEUE_ROWS and len(self._queue) < QUEUE_QUESTIONS:
                self._rows += size
                self._queue.append(Told(question, names))
            else:
                self._lost += size

    def close(self) -> None:
        """End it; what it has not answered within two seconds is lost."""
        self._closing.set()
        self._thread.join(GRACE_SECONDS + SEND_SECONDS)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()  # it is loading, or reads its pipe no more
        self._thread.join()

    def retire(self) -> None:
        """The same without waiting."""
        threading.Thread(target=self.close, name="shadow-end", daemon=True).start()

    def _run(self) -> None:
        """Keep a process, and tell it what is queued, until closed or given up."""
        deaths = 0
        while deaths <= RESTARTS and not self._closing.is_set():
            began = time.monotonic()
            how = self._live()
            deaths = 1 if time.monotonic() - began > SETTLED_SECONDS else deaths + 1
            if not self._closing.is_set():
                logger.warning("shadow %s is gone: %s", self.variant.release, how)
                self._closing.wait(PAUSE_SECONDS * 2 ** (deaths - 1))
        self.failure = None if self._closing.is_set() else f"its process ended {deaths} times ({how})"
        while not self._closing.wait(SEND_SECONDS):
            self._lose()

    def _live(self) -> str:
        """One life of the process, and how it ended."""
        process = self._process = self._started()
        with cast("IO[bytes]", process.stdin) as pipe, cast("IO[bytes]", process.stdout) as output:
            said = output.readline().decode().strip()
            try:
                while said == READY and process.poll() is None and not self._closing.wait(SEND_SECONDS):
                    self._send(pipe.fileno())
                if said == READY:
                    self._send(pipe.fileno())
            except OSError as error:  # its end of the pipe is closed
                logger.debug("shadow %s: %s", self.variant.release, error)
        code = _ended(process)
        return f"exit code {code}" if said in ("", READY) else said

    def _started(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", "mlops_assets.serving.releases.shadow_process", *self._argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # nothing is left to be flushed into a pipe that broke
            env={**os.environ, "PYTHONPATH": path},
        )

    def _send(self, pipe: int) -> None:
        """In slices, so that who answers gets the interpreter in between."""
        queue = self._taken()
        left = sum(told.question.size for told in queue)
        try:
            for content, rows in _slices(queue):
                _write(pipe, content)
                left -= rows
                time.sleep(ASIDE_SECONDS)
        finally:
            self._gone(sum(told.question.size for told in queue), lost=left)

    def _taken(self) -> list[Told]:
        """What is queued; what found no room is counted."""
        with self._lock:
            queue, self._queue = self._queue, []
            lost, self._lost = self._lost, 0
        if lost:
            self._dropped.inc(lost)
        return queue

    def _lose(self) -> None:
        """Nobody is there to be told."""
        rows = sum(told.question.size for told in self._taken())
        self._gone(rows, lost=rows)

    def _gone(self, rows: int, lost: int) -> None:
        """So many rows are in the queue no more, some of them never told."""
        with self._lock:
            self._rows -= rows
        if lost:
            self._dropped.inc(lost)


def _write(pipe: int, content: bytes) -> None:
    """Waits for as long as the shadow does not read."""
    left = memoryview(content)
    while left:
        left = left[os.write(pipe, left) :]


def _slices(queue: Sequence[Told]) -> Iterator[tuple[bytes, int]]:
    """Some questions as bytes, and how many rows they ask about."""
    parts, rows = [], 0
    for told in queue:
        parts.append(told.to_bytes())
        rows += told.question.size
        if rows >= SLICE_ROWS:
            yield b"".join(parts), rows
            parts, rows = [], 0
    if parts:
        yield b"".join(parts), rows


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; its input is closed, and it has a moment to write its log."""
    try:
        return process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
