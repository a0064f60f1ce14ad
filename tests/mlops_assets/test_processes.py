"""What `mlops up` starts it also ends: every process, however it hides, whatever ends first."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from mlops_assets.processes import (
    NoFreePortError,
    Service,
    ServiceFailedError,
    answers,
    await_ready,
    free_port,
    running,
    supervise,
)
from resources.environment import PROJECT

NOTE = "import os, pathlib, signal, sys, time; pathlib.Path(sys.argv[1], str(os.getpid())).touch()\n"
SLEEP = "while True: time.sleep(60)"
PLAIN = f"{NOTE}print('up', flush=True)\n{SLEEP}"
STUBBORN = f"""{NOTE}
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print('up', flush=True)
{SLEEP}"""
RUNAWAY = f"""{NOTE}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        pathlib.Path(sys.argv[1], str(os.getpid())).touch()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print('up', flush=True)
        {SLEEP}
    os._exit(0)
os.wait()
{SLEEP}"""
WEB = f"""{NOTE}
from http.server import HTTPServer, BaseHTTPRequestHandler
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(int(sys.argv[3]))
HTTPServer(('127.0.0.1', int(sys.argv[2])), Answer).serve_forever()"""
DYING = f"{NOTE}print('the reason\\nfor it', flush=True)\nsys.exit(3)"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """A directory in which every started process leaves a file named by its id."""
    directory = tmp_path / "pids"
    directory.mkdir()
    return directory


def started(pids: Path) -> list[int]:
    return [int(path.name) for path in pids.iterdir()]


def service(name: str, code: str, pids: Path, *arguments: object, **options: object) -> Service:
    command = [sys.executable, "-c", code, str(pids), *map(str, arguments)]
    return Service(name, command, **{"says": "up", **options})


CODES = {"plain": (PLAIN, 1), "stubborn": (STUBBORN, 1), "runaway": (RUNAWAY, 2)}


@pytest.mark.parametrize("kinds", [["plain"], ["stubborn"], ["runaway"], ["plain", "stubborn", "runaway"]])
def test_nothing_survives_the_block(kinds: Sequence[str], pids: Path, tmp_path: Path):
    """Processes that ignore TERM, or fork twice and leave the session, are gone when the block ends."""
    services = [service(kind, CODES[kind][0], pids) for kind in kinds]
    with running(services, tmp_path / "logs", grace=1) as running_services:
        await_ready(running_services)
        ids = started(pids)
        assert len(ids) == sum(CODES[kind][1] for kind in kinds)
        assert all(lives(pid) for pid in ids)
    assert not [pid for pid in started(pids) if lives(pid)]


def test_a_failure_in_the_block_stops_them_too(pids: Path, tmp_path: Path):
    """An exception of the caller's leaves nothing behind."""
    with pytest.raises(ZeroDivisionError), running([service("plain", PLAIN, pids)], tmp_path) as one:
        await_ready(one)
        raise ZeroDivisionError
    assert started(pids) and not [pid for pid in started(pids) if lives(pid)]


def test_a_command_that_does_not_exist_stops_those_before_it(pids: Path, tmp_path: Path):
    """The second service cannot be started at all: the first one is stopped."""
    services = [service("plain", PLAIN, pids), Service("absent", ["/no/such/command"])]
    with pytest.raises(FileNotFoundError, match="/no/such/command"), running(services, tmp_path):
        pytest.fail("the block was entered")
    assert not [pid for pid in started(pids) if lives(pid)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_supervisor_ends_everything(number: signal.Signals, pids: Path, tmp_path: Path):
    """Ctrl-C and TERM, and a second one while it stops: exit code 0, one line a service, nothing left."""
    code = f"""
import sys
from pathlib import Path
from mlops_assets.processes import Service, supervise
codes = { ({"plain": PLAIN, "stubborn": STUBBORN})!r}
services = [Service(name, [sys.executable, "-c", code, {str(pids)!r}], says="up") for name, code in codes.items()]
sys.exit(supervise(services, Path({str(tmp_path / "logs")!r}), say=lambda line: print(line, flush=True), grace=1))
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert supervisor.stdout
    lines = [supervisor.stdout.readline() for _ in range(3)]
    assert "Ctrl-C stops them all" in lines[0]
    assert {line.split()[0] for line in lines[1:]} == {"plain", "stubborn"}
    assert all(str(tmp_path / "logs") in line for line in lines[1:])
    supervisor.send_signal(number)
    wait_until(lambda: sum(map(lives, started(pids))) < 2)
    supervisor.send_signal(number)
    rest, _ = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 0
    assert "Killing what did not stop in 1 s: python" in rest
    assert len(started(pids)) == 2 and not [pid for pid in started(pids) if lives(pid)]


def test_one_that_dies_is_named_with_its_last_words(pids: Path, tmp_path: Path):
    """The others are stopped, the exit code says so, and the reason is on the screen."""
    said: list[str] = []
    services = [service("plain", PLAIN, pids), service("dying", DYING, pids, says="never")]
    assert supervise(services, tmp_path, said.append) == 1
    assert f"dying ended with code 3. The last lines of {tmp_path / 'dying.log'}:\n  | the reason\n  | for it" in said
    assert not [pid for pid in started(pids) if lives(pid)]


def test_one_that_dies_later_is_named_too(pids: Path, tmp_path: Path):
    """A service that was ready and then goes ends the platform instead of leaving half of it."""
    said: list[str] = []
    code = f"{NOTE}print('up', flush=True); time.sleep(1); sys.exit(4)"
    assert supervise([service("plain", PLAIN, pids), service("later", code, pids)], tmp_path, said.append) == 1
    assert any(line.startswith("later  ") for line in said)
    assert any("later ended with code 4" in line for line in said)
    assert not [pid for pid in started(pids) if lives(pid)]


def test_one_that_is_never_ready_is_named(pids: Path, tmp_path: Path):
    """Waiting has an end."""
    one = service("mute", PLAIN, pids, says="never", ready_within=0.5)
    with pytest.raises(ServiceFailedError, match=r"mute was not ready in 0\.5 s"), running([one], tmp_path) as services:
        await_ready(services)


def test_a_web_service_is_ready_when_it_answers(pids: Path, tmp_path: Path):
    """Not when its process exists: the line is said after the URL answers, a missing page included."""
    said: list[str] = []
    port = free_port(20000 + os.getpid() % 20000)
    url = f"http://127.0.0.1:{port}"
    assert not answers(url)
    with running([service("web", WEB, pids, port, 404, url=url)], tmp_path) as services:
        await_ready(services, said.append)
        assert answers(url)
    assert said == [f"web        {url:<26} log: {tmp_path / 'web.log'}"]
    assert not answers(url)


def test_what_answers_with_an_error_of_its_own_is_not_ready(pids: Path, tmp_path: Path):
    """A server that is up but broken does not count."""
    port = free_port(20000 + os.getpid() % 20000)
    one = service("broken", WEB, pids, port, 501, url=f"http://127.0.0.1:{port}", ready_within=2)
    with pytest.raises(ServiceFailedError, match="broken was not ready"), running([one], tmp_path) as services:
        await_ready(services)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_passed_over(address: str):
    """The next free port is taken, also beside one that listens on every address, and none twice."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        used = listener.getsockname()[1]
        first = free_port(used)
        assert first > used
        assert free_port(used, taken=[first]) > first
        with pytest.raises(NoFreePortError, match=f"{used} to {used}"):
            free_port(used, tries=1)
    assert free_port(used) == used
