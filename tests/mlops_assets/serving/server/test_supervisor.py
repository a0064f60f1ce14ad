"""The supervisor, for real: processes, signals, a socket. Its workers here are programs of a few lines."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlops_assets.serving.process import WORKERS, WorkersError, serve_command
from mlops_assets.serving.server.supervisor import OWN_SOCKETS, SETTLED_SECONDS, Port

ANSWER_THE_PID = """
import os, signal, socket, sys, threading
from mlops_assets.serving.server.worker import _end_with
threading.Thread(target=_end_with, args=(int(sys.argv[-1]),), daemon=True).start()
listening = socket.socket(fileno=int(sys.argv[-2]))
listening.listen(100)
while True:
    connection, _ = listening.accept()
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""
SUPERVISE = """
import os, sys, tempfile
from mlops_assets.serving.server.supervisor import METRICS, Port, Supervisor
os.environ[METRICS] = sys.argv[3]
sys.exit(Supervisor(Port("127.0.0.1", int(sys.argv[1])), 2, [sys.executable, "-c", sys.argv[2]]).run())
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def supervised(port: int, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """`supervised(worker)`: a supervisor of two such workers; whatever is left of it is killed."""
    begun: list[subprocess.Popen[str]] = []

    def begin(worker: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", SUPERVISE, str(port), worker, str(tmp_path)]
        begun.append(subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True))
        return begun[-1]

    yield begin
    for process in begun:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait(10)


def ask(port: int) -> int:
    """The pid of the worker that answers."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        return int(connection.recv(100))


def workers(supervisor: subprocess.Popen[str]) -> set[int]:
    found = psutil.Process(supervisor.pid).children()
    return {child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE}


def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def listening(port: int) -> bool:
    try:
        return bool(ask(port))
    except OSError:
        return False


def both_answer(port: int) -> None:
    eventually(lambda: listening(port) and len({ask(port) for _ in range(16)}) == 2)


def test_a_killed_worker_is_replaced_at_once(supervised: Any, port: int, tmp_path: Path) -> None:
    """Within a second, and what it said of the present is forgotten; no connection is refused meanwhile."""
    supervisor = supervised(ANSWER_THE_PID)
    both_answer(port)
    before = workers(supervisor)
    killed = min(before)
    gauges = [tmp_path / f"gauge_livesum_{pid}.db" for pid in sorted(before)]
    for gauge in gauges:
        gauge.touch()
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: killed not in workers(supervisor))
    while len(workers(supervisor) - {killed}) < 2:
        assert ask(port)
        assert time.monotonic() - began < 2
    eventually(lambda: not gauges[0].exists())
    assert gauges[1].exists()
    assert len(workers(supervisor) & before) == 1


def test_a_supervisor_that_is_asked_to_stop_takes_its_workers_along(supervised: Any, port: int) -> None:
    supervisor = supervised(ANSWER_THE_PID)
    both_answer(port)
    left = [psutil.Process(pid) for pid in workers(supervisor)]
    supervisor.terminate()
    assert supervisor.wait(10) == 0
    assert not psutil.wait_procs(left, timeout=5)[1]
    assert not listening(port)


def test_a_killed_supervisor_leaves_no_worker_behind(supervised: Any, port: int) -> None:
    """Nobody told them; they notice."""
    supervisor = supervised(ANSWER_THE_PID)
    both_answer(port)
    left = [psutil.Process(pid) for pid in workers(supervisor)]
    supervisor.kill()
    assert not psutil.wait_procs(left, timeout=5)[1]
    assert not listening(port)


def test_workers_that_cannot_start_are_given_up(supervised: Any, port: int) -> None:
    """After a few tries, a little later each; the exit status tells."""
    supervisor = supervised("import sys; sys.exit('no such model')")
    said = supervisor.communicate(timeout=SETTLED_SECONDS * 3)[1]
    assert supervisor.returncode == 1
    assert said.count("no such model") == 6
    assert json.loads(said.splitlines()[-1])["message"] == "no worker starts; see above for the reason"


def test_a_taken_port_is_said_to_be_taken(port: int, home: Path) -> None:
    with socket.create_server(("127.0.0.1", port)):
        argv, env = serve_command(port)
        ran = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1:{port}" in ran.stderr


def test_connections_are_shared_out_among_the_workers(supervised: Any, port: int) -> None:
    """A burst does not go to whoever wakes first: of 64 connections each worker has its part."""
    supervised(ANSWER_THE_PID)
    both_answer(port)
    opened = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(64)]
    answered = Counter(connection.recv(100) for connection in opened)
    for connection in opened:
        connection.close()
    assert len(answered) == 2
    assert not OWN_SOCKETS or min(answered.values()) > 10


def test_the_environment_says_how_many_workers(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """One unless it says otherwise; a call may say it, too."""
    assert serve_command(1)[0][-2:] == ["--workers", "1"]
    monkeypatch.setenv(WORKERS, "4")
    assert serve_command(1)[0][-1] == "4"
    assert serve_command(1, workers=2)[0][-1] == "2"
    for wrong in ("0", "two", "-1", ""):
        monkeypatch.setenv(WORKERS, wrong)
        with pytest.raises(WorkersError, match="a whole number from 1"):
            serve_command(1)


def test_a_port_is_one_supervisors_also_before_its_workers_listen() -> None:
    """Two platforms that start at once must not share one: half of each one's callers would be answered elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        number = probe.getsockname()[1]
    first = Port("127.0.0.1", number)
    try:
        with pytest.raises(OSError, match="in use"):
            Port("127.0.0.1", number)
        workers = [first.for_a_worker(), first.for_a_worker()]
        for worker in workers:
            worker.close()
    finally:
        first.close()
    Port("127.0.0.1", number).close()
