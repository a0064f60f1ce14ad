"""What a caller sees while releases come and go, a worker is killed, a server stops: answers, all of them right.

A real server of two workers that follows real release records, and a client of a few keep-alive connections that asks
without pause and keeps what every answer said. At full size under wrk: `make bench-serving`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from benchmarks.contenders import free_port, stop
from benchmarks.served_model import INPUTS, MODEL, bundle, features
from mlops_assets.serving.process import serve_command
from resources.bentos import BentoStore
from resources.releases import ReleaseRecord, ReleaseStore

CONNECTIONS, WORKERS = 8, 2
FOLLOW_SECONDS = 1.0
START_SECONDS = 60
WHO = {"by": "ada", "why": "a test"}
PREDICT = f"/{MODEL}/predict"
BODY = json.dumps({"rows": [{"features": dict.fromkeys(INPUTS, 0.5)} for _ in range(2)]}).encode()


@dataclass
class Answer:
    """One answer: when it was asked for and came, its status, the releases that it names."""

    sent: float
    received: float
    status: int
    releases: frozenset[str] = frozenset()


@dataclass
class Connection:
    """One keep-alive connection of the load: its port, its answers, and when it broke."""

    port: int = 0
    answers: list[Answer] = field(default_factory=list)
    broken: list[float] = field(default_factory=list)

    @property
    def last(self) -> frozenset[str]:
        return self.answers[-1].releases if self.answers else frozenset()


class Load:
    """Connections that ask again as soon as they are answered, in a thread of their own, until `stop`."""

    def __init__(self, port: int) -> None:
        self.connections = [Connection() for _ in range(CONNECTIONS)]
        self._port = port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def answers(self) -> list[Answer]:
        return [answer for connection in self.connections for answer in connection.answers]

    @property
    def broken(self) -> int:
        return sum(len(connection.broken) for connection in self.connections)

    async def _all(self) -> None:
        await asyncio.gather(*map(self._one, self.connections))

    async def _one(self, connection: Connection) -> None:
        while not self._stopping.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                connection.port = writer.get_extra_info("sockname")[1]
                while not self._stopping.is_set():
                    connection.answers.append(await ask(reader, writer, BODY))
                writer.close()
            except (OSError, asyncio.IncompleteReadError):
                connection.broken.append(time.time())


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> Answer:
    """One request on an open connection; IncompleteReadError or OSError when it breaks."""
    sent = time.time()
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(f"{head}\r\n\r\n".encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
    answer, status = json.loads(await reader.readexactly(length)), int(lines[0].split()[1])
    releases = frozenset(one["release"] for one in answer.get("predictions", ()))
    return Answer(sent, time.time(), status, releases)


@dataclass
class Server:
    """The supervisor's process, and where its workers answer."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def workers(self) -> set[int]:
        found = psutil.Process(self.process.pid).children()
        return {child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE}

    def ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/{MODEL}/release", timeout=5).json()
        return state


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store of Bentos: three versions that answer differently, and one that does not answer its golden rows."""
    root = tmp_path_factory.mktemp("built")
    broken = bundle(root / "bundles" / "4", trees=10, seed=4, shift=0.2)
    good = [bundle(root / "bundles" / str(seed), trees=10, seed=seed) for seed in (1, 2, 3)]
    store = BentoStore(root / "bentoml")
    return store.root, {
        one.directory.name: store.build(one.directory, MODEL, {"version": one.directory.name, "run_id": "r"})
        for one in (*good, broken)
    }


@pytest.fixture
def tags(built: tuple[Path, dict[str, str]], home: Path) -> dict[str, str]:
    """The Bentos by version, in a home of their own; the first has all traffic."""
    root, tags = built
    shutil.copytree(root, home / "bentoml")
    ReleaseStore().start_canary(MODEL, tags["1"], "1", [100], **WHO)
    return tags


@contextmanager
def serving(log: Path) -> Iterator[Server]:
    port = free_port()
    argv, env = serve_command(port, workers=WORKERS)
    with log.open("wb") as output:
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output, start_new_session=True)
    server = Server(process, port, log)
    try:
        eventually(server.ready, START_SECONDS, log.read_text)
        yield server
    finally:
        stop(process)


@contextmanager
def loaded(server: Server) -> Iterator[Load]:
    """Under load on every worker: the kernel shares connections out as it likes, so until it does."""
    loads: list[Load] = []

    def on_every_worker() -> bool:
        for load in loads:
            load.stop()
        loads.append(Load(server.port))
        eventually(lambda: all(connection.answers for connection in loads[-1].connections))
        return len(server.workers()) == WORKERS and all(map(ports_of, server.workers()))

    try:
        eventually(on_every_worker)
        yield loads[-1]
    finally:
        loads[-1].stop()


def eventually(condition: Callable[[], Any], seconds: float = 60, why: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in time {why()}"
        time.sleep(0.02)


def changes(tags: dict[str, str]) -> Iterator[tuple[Callable[[], ReleaseRecord], set[str]]]:
    """Twenty changes of traffic, each with the versions that may answer after it."""
    records = ReleaseStore()

    def canary(version: str, *steps: int) -> Callable[[], ReleaseRecord]:
        return lambda: records.start_canary(MODEL, tags[version], version, steps, **WHO)

    def promote(version: str) -> Callable[[], ReleaseRecord]:
        return lambda: records.promote(MODEL, version, **WHO)

    def rollback() -> ReleaseRecord:
        return records.rollback(MODEL, **WHO)

    def advance() -> ReleaseRecord:
        return records.advance(MODEL, **WHO)

    yield from [(canary("2", 100), {"2"}), (rollback, {"1"}), (rollback, {"2"})]
    yield from [(canary("3", 50, 100), {"2", "3"}), (advance, {"3"}), (rollback, {"2"})]
    yield canary("4", 100), {"2"}  # broken: the one before it serves on
    yield from [(promote("1"), {"1"}), (promote("3"), {"3"}), (rollback, {"1"})]
    yield from [(canary("2", 10, 50, 100), {"1", "2"}), (advance, {"1", "2"}), (rollback, {"1"})]
    yield from [(canary("2", 50, 100), {"1", "2"}), (advance, {"2"}), (promote("3"), {"3"})]
    yield from [(rollback, {"2"}), (promote("1"), {"1"}), (rollback, {"2"}), (rollback, {"1"})]


def test_twenty_releases_fail_no_request(tags: dict[str, str], tmp_path: Path) -> None:
    """Under constant load: every request is answered, by who may answer then, and every worker follows in a second."""
    with serving(tmp_path / "log") as server, loaded(server) as load:
        phases = [(0.0, frozenset({tags["1"]}))]
        for change, versions in changes(tags):
            phases.append((time.time(), frozenset(tags[version] for version in versions)))
            revision = change().revision
            if tags["4"] in [variant.release for variant in ReleaseStore().history(MODEL)[-1].after]:
                eventually(lambda: refused(server, tags["4"]))
            followed(load, *phases[-1])
            assert ReleaseStore().history(MODEL)[-1].revision >= revision
        load.stop()
    assert len(phases) == 21
    assert {answer.status for answer in load.answers} == {200}
    assert load.broken == 0
    assert not list(strangers(load.answers, phases))
    assert tags["4"] not in {release for answer in load.answers for release in answer.releases}
    assert {release for answer in load.answers for release in answer.releases} == {tags[v] for v in ("1", "2", "3")}


def refused(server: Server, tag: str) -> bool:
    """The broken one is known to be: the server says so, or has taken it out of the record."""
    return tag in str(server.state()["refused"]) or ReleaseStore().history(MODEL)[-1].action == "refused"


def followed(load: Load, since: float, allowed: frozenset[str]) -> None:
    """Wait until every connection is answered by those alone, and for a canary has met each; a second at most."""
    wanted = [connection.answers for connection in load.connections]
    eventually(lambda: all(answers[-1].sent > since and answers[-1].releases <= allowed for answers in wanted))
    late = max(answer.sent for answers in wanted for answer in answers if not answer.releases <= allowed) - since
    assert late < FOLLOW_SECONDS, f"a worker answered from a release {late:.2f} s after it lost its traffic"
    time.sleep(0.1)


def strangers(answers: Sequence[Answer], phases: Sequence[tuple[float, frozenset[str]]]) -> Iterator[Answer]:
    """The answers of a release that had no traffic when they were asked for, nor a second before."""
    ends = [began for began, _ in phases[1:]] + [float("inf")]
    for answer in answers:
        allowed = {
            release
            for (began, releases), end in zip(phases, ends, strict=True)
            if began <= answer.received and answer.sent <= end + FOLLOW_SECONDS
            for release in releases
        }
        if not answer.releases <= allowed:
            yield answer


def test_a_killed_worker_fails_only_its_own_connections(tags: dict[str, str], tmp_path: Path) -> None:
    """kill -9 under load: the other worker's connections see nothing of it, and a new worker is there in seconds."""
    with serving(tmp_path / "log") as server, loaded(server) as load:
        victim, ports = busiest(server)
        hit = [connection for connection in load.connections if connection.port in ports]
        began = time.time()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: len(server.workers() - {victim}) == WORKERS)
        eventually(lambda: all(c.answers[-1].sent > began for c in load.connections))
        eventually(lambda: answered_by(server, server.workers() - {victim}))
        load.stop()
    assert {answer.status for answer in load.answers} == {200}
    assert all(not connection.broken for connection in load.connections if connection not in hit)
    assert all(connection.broken for connection in hit)
    assert time.time() - began < 30


def busiest(server: Server) -> tuple[int, set[int]]:
    """The worker with the most connections, and the ports of their other ends."""
    held = {pid: ports_of(pid) for pid in server.workers()}
    return max(held.items(), key=lambda one: len(one[1]))


def ports_of(pid: int) -> set[int]:
    return {one.raddr.port for one in psutil.Process(pid).net_connections("tcp") if one.raddr}


def answered_by(server: Server, workers: set[int]) -> bool:
    """Does each of them take connections? Asked by new connections until each was met."""
    met = set()
    with ThreadPoolExecutor(16) as pool:

        def meet(_: int) -> set[int]:
            with httpx.Client() as client:
                client.get(f"http://127.0.0.1:{server.port}/readyz", timeout=10)
                return {pid for pid in workers if ports_of(pid)}

        for found in pool.map(meet, range(32)):
            met |= found
    return met == workers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked to stop", "supervisor killed"])
def test_a_server_that_stops_answers_what_it_has_taken(
    number: signal.Signals, tags: dict[str, str], tmp_path: Path
) -> None:
    """Large requests in flight are answered, each answer is in the log, and no worker stays behind."""
    from mlops_assets.serving.prediction_log import PredictionLog

    rows = [{"features": row} for row in features(5_000).to_dicts()]
    body = json.dumps({"rows": rows}).encode()
    with serving(tmp_path / "log") as server:
        workers = [psutil.Process(pid) for pid in server.workers()]
        stopped, answers = asyncio.run(asked_while_stopping(server, body, number))
        assert not psutil.wait_procs(workers, timeout=25)[1]
        server.process.wait(10)
        assert not server.ready()
    assert [answer.status for answer in answers] == [200] * 4
    assert max(answer.received for answer in answers) > stopped
    log = PredictionLog()
    (day,) = log.days(MODEL)
    assert log.read(MODEL, day).height == 4 * len(rows)
    assert log.gaps(MODEL).lines == log.gaps(MODEL).dropped == 0


async def asked_while_stopping(server: Server, body: bytes, number: signal.Signals) -> tuple[float, list[Answer]]:
    """When the signal came, and four answers to requests that were taken just before."""
    connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(4)]
    asked = [asyncio.create_task(ask(*connection, body)) for connection in connections]
    await asyncio.sleep(0)  # each writes its request
    for _, writer in connections:
        writer.transport.set_write_buffer_limits(0)
        await writer.drain()  # until all of it is sent
    callers = {writer.get_extra_info("sockname")[1] for _, writer in connections}
    for _ in iter(lambda: has_read(server.port, callers), True):
        await asyncio.sleep(0.001)
    os.kill(server.process.pid, number)
    return time.time(), await asyncio.gather(*asked)


def has_read(port: int, callers: set[int]) -> bool:
    """By the kernel's word: a process has accepted these connections, and nothing waits in them to be read."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *rest = line.split()
        if int(local.partition(":")[2], 16) == port:
            found[int(remote.partition(":")[2], 16)] = queues.endswith(":00000000") and rest[4] != "0"
    return all(found.get(caller) for caller in callers)
