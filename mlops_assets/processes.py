"""The processes of the platform on one machine: started together, watched, and stopped together.

Nothing may be left running: not a worker that left its parent's group, not a process that ignores
TERM. Each service leads a group of its own and carries a mark in its environment, which its
descendants inherit whatever group or parent they take; stopping ends when no process carries it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from uuid import uuid4

import psutil

from resources.environment import DAGSTER_URL, MLFLOW_UI_URL, PROJECT, REPORTS_URL, home, prepare_home, quiet_telemetry
from resources.events import address_file

MARK = "MLOPS_SUPERVISED_BY"
LOOPBACK = "127.0.0.1"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Say = Callable[[str], None]


class ServiceFailedError(RuntimeError):
    """A service ended by itself or never became ready."""

    @classmethod
    def of(cls, name: str, what: str, log: Path) -> Self:
        lines = log.read_text(errors="replace").splitlines()[-20:]
        return cls("\n".join([f"{name} {what}. The last lines of {log}:", *(f"  | {line}" for line in lines)]))


class NoFreePortError(RuntimeError):
    """No port is free where one was looked for."""

    @classmethod
    def of(cls, first: int, last: int) -> Self:
        return cls(f"No port of {first} to {last} is free on {LOOPBACK}. Stop what listens there, or choose another.")


@dataclass(frozen=True)
class Service:
    """A command that runs until it is stopped. `page` is what people open below `url`.

    It is ready when `url` + `probe` answers over HTTP with less than 500, or, without a url, when its log says `says`.
    """

    name: str
    command: Sequence[str]
    url: str | None = None
    probe: str = "/"
    says: str = ""
    page: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_within: float = 180.0

    def is_ready(self, log: Path) -> bool:
        return answers(self.url + self.probe) if self.url else self.says in log.read_text(errors="replace")


@dataclass(frozen=True)
class Running:
    """A started service: its process, which leads a group, and where it logs."""

    service: Service
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    def require_alive(self) -> None:
        if (code := self.process.poll()) is not None:
            raise ServiceFailedError.of(self.service.name, f"ended with code {code}", self.log)

    def require_in_time(self) -> None:
        if time.monotonic() - self.started > self.service.ready_within:
            what = f"was not ready in {self.service.ready_within:g} s"
            raise ServiceFailedError.of(self.service.name, what, self.log)

    def __str__(self) -> str:
        where = self.service.url + self.service.page if self.service.url else "running"
        return f"{self.service.name:<10} {where:<26} log: {self.log}"


def answers(url: str) -> bool:
    """Whether something there speaks HTTP and is not broken; a redirect or a missing page will do."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=5) as response:  # noqa: S310  the address is our own
            return int(response.status) < 500
    except HTTPError as error:
        return error.code < 500
    except (URLError, HTTPException, OSError):
        return False


def free_port(preferred: int, taken: Sequence[int] = (), tries: int = 100) -> int:
    """`preferred` or the next port that nobody listens on. Raises NoFreePortError."""
    for port in range(preferred, preferred + tries):
        if port not in taken and _is_free(port):
            return port
    raise NoFreePortError.of(preferred, preferred + tries - 1)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if probe.connect_ex((LOOPBACK, port)) == 0:  # macOS lets us bind beside one that listens on every address
            return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


@contextmanager
def running(
    services: Sequence[Service], logs: Path, say: Say = print, grace: float = 15.0
) -> Iterator[Sequence[Running]]:
    """Start the services for the time of the block; `<name>.log` in `logs` is what each prints.

    Leaving the block stops every process they started: TERM first, KILL after `grace` seconds.
    """
    mark, started = uuid4().hex, list[Running]()
    try:
        for service in services:
            started.append(_start(service, logs, mark))
        yield started
    finally:
        with _undisturbed():
            _stop(started, mark, grace, say)


def await_ready(started: Sequence[Running], say: Say = print, stop: threading.Event | None = None) -> None:
    """Say each service as it becomes ready; returns when all are, or when `stop` is set.

    Raises ServiceFailedError when one ends or takes longer than it may.
    """
    stop, waiting = stop or threading.Event(), list(started)
    while waiting and not stop.wait(0.1):
        for one in started:
            one.require_alive()
        for one in [one for one in waiting if one.service.is_ready(one.log)]:
            waiting.remove(one)
            say(str(one))
        for one in waiting:
            one.require_in_time()


def supervise(services: Sequence[Service], logs: Path, say: Say = print, grace: float = 15.0) -> int:
    """Run the services until Ctrl-C or TERM (exit code 0) or until one of them fails (1, and why is said)."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in STOPPING}
    try:
        with running(services, logs, say, grace) as started:
            say(f"Starting {', '.join(service.name for service in services)}. Ctrl-C stops them all.")
            await_ready(started, say, stop)
            while not stop.wait(0.2):
                for one in started:
                    one.require_alive()
        return 0
    except ServiceFailedError as error:
        say(str(error))
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(service: Service, logs: Path, mark: str) -> Running:
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{service.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            service.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **service.environment, MARK: mark},
            start_new_session=True,
        )
    return Running(service, process, log)


def _stop(started: Sequence[Running], mark: str, grace: float, say: Say) -> None:
    for one in reversed(started):
        _signal_group(one.process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while (left := _marked(mark, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        say(f"Killing what did not stop in {grace:.0f} s: {', '.join(f'{one.name()} ({one.pid})' for one in left)}")
    while left := _marked(mark, started):  # again, for those born meanwhile
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=1)


def _signal_group(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return  # the whole group is gone


def _marked(mark: str, started: Sequence[Running]) -> list[psutil.Process]:
    for one in started:
        one.process.poll()  # or a child that ended would stay, as a zombie
    return [process for process in psutil.process_iter() if _carries(process, mark)]


def _carries(process: psutil.Process, mark: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False  # gone, or another user's


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not cut the stopping short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def dagster_services(
    port: int, mlflow_port: int, reports_port: int, workspace: Path = PROJECT / "workspace.yaml"
) -> list[Service]:
    """The web server and the daemon, which runs schedules, sensors and the queue; their links lead to these ports."""
    web = [sys.executable, "-m", "dagster_webserver", "-w", str(workspace), "-h", LOOPBACK, "-p", str(port)]
    daemon = [sys.executable, "-m", "dagster._daemon", "run", "-w", str(workspace)]
    ports = {DAGSTER_URL: port, MLFLOW_UI_URL: mlflow_port, REPORTS_URL: reports_port}
    links = {variable: f"http://{LOOPBACK}:{number}" for variable, number in ports.items()}
    return [
        Service("dagster", web, url=f"http://{LOOPBACK}:{port}", probe="/server_info", environment=links),
        Service("daemon", daemon, says="Instance is configured with the following daemons", environment=links),
    ]


def mlflow_service(port: int) -> Service:
    """The tracking server and its UI."""
    from resources.mlflow import server_command

    command, variables = server_command(port)
    return Service("mlflow", command, url=f"http://{LOOPBACK}:{port}", probe="/health", environment=variables)


def endpoint_service(port: int, models: Sequence[str] = ()) -> Service:
    """The endpoint of every released model, or of some."""
    from mlops_assets.serving.process import serve_command

    command, variables = serve_command(port, models=models)
    url = f"http://{LOOPBACK}:{port}"
    return Service("endpoint", command, url=url, probe="/livez", page="/docs", environment=variables)


def reports_service(port: int) -> Service:
    """The pages of the drift and performance reports, to which the assets link."""
    pages = home() / "reports"
    pages.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", LOOPBACK, "--directory", str(pages)]
    return Service("reports", command, url=f"http://{LOOPBACK}:{port}")


def prepare_storage() -> None:
    """Make Dagster's databases before two services do so at once: both would stamp them, and no one could read them."""
    if not (prepare_home() / "schedules").exists():
        import dagster as dg

        with dg.DagsterInstance.get():
            pass


def up(dagster: int = 3000, endpoint: int = 3001, reports: int = 3002, mlflow: int = 5000, say: Say = print) -> int:
    """Run the whole platform on loopback, at these ports or the next free ones; returns the exit code."""
    quiet_telemetry()
    prepare_storage()
    ports: list[int] = []
    for preferred in (dagster, endpoint, reports, mlflow):
        ports.append(free_port(preferred, taken=ports))
    web, serving, pages, tracking = ports
    address_file().write_text(f"http://{LOOPBACK}:{web}")  # for who pushes events from outside these services
    services = [
        *dagster_services(web, tracking, pages),
        mlflow_service(tracking),
        reports_service(pages),
        endpoint_service(serving),
    ]
    try:
        return supervise(services, home() / "logs", say)
    finally:
        address_file().unlink(missing_ok=True)
