"""Alerts reach a real HTTP server, or are told to be lost; they never raise."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from resources.alerts import Alert, AlertResource

ALERT = Alert("flights/late_arrival/candidate [2013-07-08] failed", "ValueError: no rows", link="http://ui/runs/1")


@dataclass
class Receiver:
    """A webhook that answers with the given statuses in turn, then with 200."""

    url: str
    statuses: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(got.statuses.pop(0) if got.statuses else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        got = Receiver(f"http://127.0.0.1:{server.server_port}/hook-secret")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield got
        server.shutdown()


def alerts(url: str | None) -> AlertResource:
    return AlertResource(webhook_url=url, backoff_seconds=0.0, timeout_seconds=2.0)


def test_without_a_webhook_an_alert_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log is the channel that is always there; the severity is the level."""
    with caplog.at_level(logging.WARNING, logger="resources.alerts"):
        assert alerts(None).send(ALERT)
        assert alerts(None).send(Alert("drift", "12 columns", severity="warning"))
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", str(ALERT)),
        ("WARNING", "drift: 12 columns"),
    ]


def test_a_webhook_gets_the_whole_alert(receiver: Receiver) -> None:
    """The text is what a chat shows, beside the parts for whoever reads them."""
    assert alerts(receiver.url).send(ALERT)
    assert receiver.bodies == [
        {
            "title": ALERT.title,
            "severity": "error",
            "link": "http://ui/runs/1",
            "text": f"{ALERT.title}: ValueError: no rows (http://ui/runs/1)",
        }
    ]


@pytest.mark.parametrize(
    ("statuses", "posts", "delivered"), [([503, 429], 3, True), ([500] * 9, 3, False), ([404], 1, False)]
)
def test_delivery_is_tried_a_bounded_number_of_times(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, statuses: list[int], posts: int, delivered: bool
) -> None:
    """What another attempt may mend is retried; what is lost is an error in the log, without the secret address."""
    receiver.statuses = list(statuses)
    assert alerts(receiver.url).send(ALERT) is delivered
    assert len(receiver.bodies) == posts
    lost = [r.getMessage() for r in caplog.records if "was not delivered" in r.getMessage()]
    assert bool(lost) is not delivered
    assert "hook-secret" not in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed", "not a url", "file:///etc/hostname"])
def test_a_webhook_that_cannot_be_reached_never_raises(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The caller is told, and so is the log."""
    assert not alerts(url).send(ALERT)
    assert "was not delivered" in caplog.text
