"""A port, the workers that answer on it, and a new worker in the place of one that died.

BentoML's own supervisor looks at its workers every ten seconds, and leaves them running when it is killed itself. This
one is told by the kernel when a worker ends and starts the next at once, while the others go on answering. Nothing
heavy is imported, so it takes 15 MB and is there in a moment.

    SIGTERM, SIGINT     no new connections; requests in flight are answered, the log is written, all workers end
    kill -9 of it       the workers notice (their end of a pipe closes) and end in the same way
    kill -9 of a worker a new one; its metrics that say what is now (gauges) are forgotten
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

GRACE_SECONDS = 25.0  # for a worker to end; it gives its own requests a little less (worker.DRAIN_SECONDS)
SETTLED_SECONDS = 10.0  # one that ended sooner was hardly there: the next has to wait, every time twice as long
FIRST_WAIT, LONGEST_WAIT = 0.25, 10.0
TRIES = 3  # starts that fail by themselves in a row, with no worker left, until it is no use
BACKLOG = 2048
OWN_SOCKETS = sys.platform == "linux"
LOGGER = "mlops_assets.serving.server.supervisor"
METRICS = "PROMETHEUS_MULTIPROC_DIR"  # where the workers of one server add up what they count


@dataclass
class Worker:
    """The process in one of the places: its short lives in a row, those that it ended itself, when the next is due."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    short: int = 0
    failed: int = 0
    due: float = 0.0

    @property
    def alive(self) -> bool:
        return self.process is not None


class Port:
    """`host:port`, ours until closed; OSError when somebody else listens there.

    Where the kernel can share connections out among sockets (Linux), every worker has one of its own, on which it
    listens once it can answer: with one for all, a worker that wakes first takes every connection of a burst. A killed
    worker's socket goes with it, so nobody waits there for the next. Elsewhere all of them share one socket.
    """

    def __init__(self, host: str, port: int) -> None:
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._address = (host, port)
        self._held = socket.create_server(self._address, family=self._family, backlog=BACKLOG)
        if OWN_SOCKETS:  # nobody else was there; one that is bound but does not listen keeps the port
            self._held.close()
            self._held = self._bound(alone=True)

    def for_a_worker(self) -> socket.socket:
        """A socket to inherit."""
        return self._bound() if OWN_SOCKETS else self._held.dup()

    def close(self) -> None:
        self._held.close()

    def _bound(self, *, alone: bool = False) -> socket.socket:
        """`alone` keeps others off before anybody listens: beside an address that may be reused they could bind too."""
        bound = socket.socket(self._family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0 if alone else 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(self._address)
        return bound


class Supervisor:
    """Keeps so many workers on a port until it is told to stop; `argv` gets the file descriptors they inherit."""

    def __init__(self, port: Port, workers: int, argv: Sequence[str]) -> None:
        self._port = port
        self._argv = argv
        self._workers = [Worker(number) for number in range(1, workers + 1)]
        self._lifeline, self._held = os.pipe()  # the held end closes when this process ends, however it ends
        self._kill_at: float | None = None

    def run(self) -> int:
        """Until stopped; 0, or 1 when no worker can be started."""
        with _signals() as (woken, stopped):
            while True:
                self._reap()
                if stopped and self._kill_at is None:
                    self._stop()
                if self._kill_at is not None:
                    if not any(worker.alive for worker in self._workers):
                        return 0
                    self._kill_late()
                elif self._hopeless:
                    say("no worker starts; see above for the reason")
                    return 1
                else:
                    self._start_due()
                select.select([woken], [], [], self._patience())
                _drain(woken)

    @property
    def _hopeless(self) -> bool:
        return all(not worker.alive and worker.failed >= TRIES for worker in self._workers)

    def _patience(self) -> float:
        """Seconds until there may be something to do that no signal tells of."""
        waits = [worker.due - time.monotonic() for worker in self._workers if not worker.alive]
        return min(max(min(waits, default=1.0), 0.01), 1.0)

    def _start_due(self) -> None:
        for worker in self._workers:
            if not worker.alive and time.monotonic() >= worker.due:
                self._start(worker)

    def _start(self, worker: Worker) -> None:
        with self._port.for_a_worker() as bound:
            inherited = (bound.fileno(), self._lifeline)
            argv = [*self._argv, "--number", str(worker.number), *map(str, inherited)]
            worker.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=inherited)
        worker.started = time.monotonic()

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.process and worker.process.poll() is not None:
                self._ended(worker, worker.process)

    def _ended(self, worker: Worker, process: subprocess.Popen[bytes]) -> None:
        lived, worker.process = time.monotonic() - worker.started, None
        _forget_gauges(process.pid)
        short = lived < SETTLED_SECONDS
        worker.short = worker.short + 1 if short else 0
        worker.failed = worker.failed + 1 if short and process.returncode > 0 else 0
        wait = min(FIRST_WAIT * 2 ** (worker.short - 1), LONGEST_WAIT) if short else 0.0
        worker.due = time.monotonic() + wait
        if self._kill_at is None:
            say(f"worker {process.pid} ended ({_why(process.returncode)}); another starts in {wait:g} s")

    def _stop(self) -> None:
        self._port.close()
        self._kill_at = time.monotonic() + GRACE_SECONDS
        self._signal(signal.SIGTERM)

    def _kill_late(self) -> None:
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            if worker.process:
                worker.process.send_signal(number)


def say(what: str) -> None:
    """A line of the log, as the workers write theirs; for which `logs.py` would have to be imported."""
    line = {"time": datetime.now(UTC).isoformat(), "level": "warning", "logger": LOGGER, "message": what}
    sys.stderr.write(json.dumps({**line, "pid": os.getpid()}) + "\n")
    sys.stderr.flush()


@contextmanager
def _signals() -> Iterator[tuple[int, list[int]]]:
    """A descriptor that is readable after a signal, and those that asked to stop."""
    woken, waker = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(waker, False)
    stopped: list[int] = []
    signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler it would not wake
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    try:
        yield woken, stopped
    finally:
        signal.set_wakeup_fd(-1)
        os.close(woken)
        os.close(waker)


def _drain(descriptor: int) -> None:
    try:
        os.read(descriptor, 4096)
    except BlockingIOError:
        return


def _why(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"


def _forget_gauges(pid: int) -> None:
    """What a process that is gone said of the present, as prometheus_client's `mark_process_dead` forgets it."""
    for path in Path(os.environ[METRICS]).glob(f"gauge_live*_{pid}.db"):
        path.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mlops_assets.serving.server.supervisor", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    try:
        port = Port(asked.host, asked.port)
    except OSError as error:
        say(f"cannot listen on {asked.host}:{asked.port} ({error}); stop what does, or choose another port")
        return 1
    metrics = os.environ[METRICS] = tempfile.mkdtemp(prefix="endpoint-metrics-")
    argv = [sys.executable, "-m", "mlops_assets.serving.server.worker"]
    try:
        return Supervisor(port, asked.workers, argv).run()
    finally:
        shutil.rmtree(metrics, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
