"""Receivers of alerts: an HTTP server that answers as it is told, and the outbox in both databases."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import resources.database
from resources.database import _engine


@dataclass
class Receiver:
    """A webhook that answers with the given statuses in turn, then with 200; `hang` seconds before each answer."""

    url: str
    statuses: list[int] = field(default_factory=list)
    hang: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    identities: list[str] = field(default_factory=list)

    def wait_for(self, count: int, seconds: float = 60.0) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while len(self.bodies) < count:
            assert time.monotonic() < deadline, f"{len(self.bodies)} of {count} messages came in {seconds} s"
            time.sleep(0.01)
        return self.bodies


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            got.identities.append(self.headers["Idempotency-Key"])
            got.bodies.append(body)
            released.wait(got.hang)
            self.send_response(got.statuses.pop(0) if got.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        got = Receiver(f"http://127.0.0.1:{server.server_port}/hook-secret")
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield got
        released.set()
        server.shutdown()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The platform's database, embedded and deployed."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres").replace("postgresql://", "postgresql+psycopg2://")
        monkeypatch.setattr("resources.database.database_url", lambda: url)
    yield str(request.param)
    _engine(resources.database.database_url()).dispose()  # a server stops when its last client left
