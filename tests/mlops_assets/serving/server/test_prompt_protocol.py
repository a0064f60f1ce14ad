"""Predictions answered while they are parsed: byte for byte what uvicorn's own way answers, on real connections."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mlops_assets.serving.app import FrontDoor, Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import EmptyStore
from mlops_assets.serving.predict import INLINE_BYTES
from mlops_assets.serving.prediction_log.writer import NoLog
from mlops_assets.serving.releases import OneRelease
from mlops_assets.serving.server import prompt_protocol
from mlops_assets.serving.server.prompt_protocol import PromptProtocol

MODEL = "flights/late_arrival"
VALUES = {"distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False, "temp": 50.0, "delay": 4.0}
BODY = json.dumps({"rows": [{"features": VALUES}]}).encode()
KEEP_ALIVE = 2


class Server:
    """uvicorn in a thread, with our protocol or its own; `prompt` counts what was answered by ours."""

    def __init__(self, release: Release, protocol: type[HttpToolsProtocol]) -> None:
        serving = Serving(OneRelease(release, "tag:1", "1"), EmptyStore(), NoLog())
        app = create_app(lambda: serving)
        config = uvicorn.Config(
            FrontDoor(app, app), http=protocol, log_level="warning", timeout_keep_alive=KEEP_ALIVE, lifespan="on"
        )
        self._server = uvicorn.Server(config)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listening])))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self._listening.getsockname(), timeout=10)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def stop(self, *, wait: bool = True) -> None:
        self._server.should_exit = True
        if wait:
            self._thread.join()


@pytest.fixture(scope="module")
def release(make_bundle: Callable[..., Path]) -> Release:
    return Release.load(make_bundle())


@pytest.fixture(scope="module")
def ours(release: Release) -> Iterator[Server]:
    server = Server(release, PromptProtocol)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def uvicorns(release: Release) -> Iterator[Server]:
    server = Server(release, HttpToolsProtocol)
    yield server
    server.stop()


@pytest.fixture
def prompted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses of the requests that were answered while they were parsed."""
    seen: list[int] = []
    real = prompt_protocol.prompt

    def counting(*args: Any) -> Any:
        reply = real(*args)
        if reply is not None:
            seen.append(reply[0])
        return reply

    monkeypatch.setattr(prompt_protocol, "prompt", counting)
    return seen


def request(
    body: bytes = BODY, *headers: str, path: str = f"/{MODEL}/predict", method: str = "POST", version: str = "1.1"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: here", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes) -> bytes:
    head = f"POST /{MODEL}/predict HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))


def responses(connection: socket.socket, count: int) -> list[tuple[int, dict[str, str], Any]]:
    """So many answers: status, headers, what the body says but for the ids, which are new with every answer."""
    data, found = b"", []
    while len(found) < count:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if separator and head == b"HTTP/1.1 100 Continue":
            data = rest
            continue
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        if separator and len(rest) >= (size := int(headers["content-length"])):
            found.append((int(lines[0].split()[1]), headers, told(rest[:size])))
            data = rest[size:]
            continue
        more = connection.recv(65536)
        assert more, f"closed after {data!r}"
        data += more
    assert not data
    return found


def told(body: bytes) -> Any:
    try:
        said = json.loads(body)
    except ValueError:
        return body
    for one in said.get("predictions", ()) if isinstance(said, dict) else ():
        one["request_id"] = len(one["request_id"]) > 8
    return said


def comparable(answers: list[tuple[int, dict[str, str], Any]]) -> Any:
    kept = ("content-type", "content-length", "connection", "x-request-id", "retry-after", "server")
    return [
        (status, {name: headers.get(name) for name in kept if name != "content-length" or status != 200}, said)
        for status, headers, said in answers
    ]


MANY = json.dumps({"rows": [{"features": VALUES}] * 200}).encode()
CASES = {
    "a prediction": (request(), 1, 1),
    "kept alive by name": (request(BODY, "Connection: keep-alive", "X-Request-Id: me"), 1, 1),
    "wrong field": (request(BODY.replace(b"seats", b"chairs")), 1, 1),
    "no JSON": (request(b"{"), 1, 1),
    "three at once": (request() * 3, 3, 3),
    "a large body": (request(MANY), 1, 0),
    "a small one behind a large one": (request(MANY) + request(), 2, 0),
    "no body": (request(b""), 1, 0),
    "in chunks": (chunked(BODY[:10], BODY[10:]), 1, 0),
    "closes": (request(BODY, "Connection: close"), 1, 0),
    "waits to go on": (request(BODY, "Expect: 100-continue"), 1, 0),
    "HTTP 1.0": (request(version="1.0"), 1, 0),
    "unknown model": (request(path="/flights/other/predict"), 1, 0),
    "a query": (request(path=f"/{MODEL}/predict?x=1"), 1, 0),
    "an escaped path": (request(path=f"/{MODEL}/predic%74"), 1, 0),
    "another route": (request(b"", path="/healthz", method="GET"), 1, 0),
    "not allowed": (request(method="PUT"), 1, 0),
    "the open protocol": (request(b"{}", path=f"/v2/models/{MODEL.replace('/', '.')}/infer"), 1, 1),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_answered_is_what_uvicorn_answers(
    name: str, ours: Server, uvicorns: Server, prompted: list[int]
) -> None:
    """Status, headers and body, whichever way a request takes; and each takes the way it should."""
    sent, count, expected = CASES[name]
    answers = []
    for server in (ours, uvicorns):
        with server.connect() as connection:
            connection.sendall(sent)
            answers.append(comparable(responses(connection, count)))
    assert answers[0] == answers[1]
    assert len(prompted) == expected


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.sets(st.integers(1, 3 * len(request()) - 1), max_size=6))
def test_requests_may_come_in_any_pieces(cuts: set[int], ours: Server) -> None:
    """Three requests cut anywhere: three answers, in order."""
    data, places = request() * 3, [0, *sorted(cuts), 3 * len(request())]
    with ours.connect() as connection:
        for begin, end in pairwise(places):
            connection.sendall(data[begin:end])
            time.sleep(0.001)
        assert [status for status, _, _ in responses(connection, 3)] == [200] * 3


def test_the_two_ways_take_turns_on_a_connection(ours: Server, prompted: list[int]) -> None:
    with ours.connect() as connection:
        for sent in (request(), request(MANY), request(), chunked(BODY), request(b"", path="/healthz", method="GET")):
            connection.sendall(sent)
            assert responses(connection, 1)[0][0] == 200
        connection.sendall(request())
        assert responses(connection, 1)[0][0] == 200
    assert prompted == [200] * 3
    assert len(MANY) > INLINE_BYTES


def test_an_idle_connection_is_closed_and_a_used_one_is_not(ours: Server) -> None:
    """After the keep-alive time since the last answer, whichever way that took."""
    with ours.connect() as idle, ours.connect() as used:
        idle.sendall(request())
        responses(idle, 1)
        began = time.monotonic()
        for sent in (request(), request(MANY), request()):
            used.sendall(sent)
            assert responses(used, 1)[0][0] == 200
            time.sleep(KEEP_ALIVE * 0.45)
        idle.settimeout(KEEP_ALIVE * 3)
        assert idle.recv(1) == b""
        assert time.monotonic() - began > KEEP_ALIVE * 0.9
        used.sendall(request())
        assert responses(used, 1)[0][0] == 200
        used.settimeout(KEEP_ALIVE * 3)
        assert used.recv(1) == b""


def test_a_server_that_stops_answers_a_request_of_which_a_part_has_come(release: Release) -> None:
    server = Server(release, PromptProtocol)
    with server.connect() as connection:
        sent = request()
        connection.sendall(sent[:-10])
        time.sleep(0.1)
        server.stop(wait=False)
        time.sleep(0.3)
        connection.sendall(sent[-10:])
        ((status, headers, _),) = responses(connection, 1)
    server.stop()
    assert (status, headers["connection"]) == (200, "close")


def test_a_client_that_does_not_read_is_not_answered_faster_than_it_reads(ours: Server) -> None:
    """Thousands of requests whose answers nobody takes: all are answered once it does."""
    count = 5_000
    with ours.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=(request() * count,))
        sender.start()
        time.sleep(1)
        answers = responses(connection, count)
        sender.join()
    assert {status for status, _, _ in answers} == {200}
