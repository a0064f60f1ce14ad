"""Alerts reach real receivers or are told to be lost; they never raise, and nobody waits for them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from resources.alerts import Alert, AlertResource, UnknownChannelError, outbox
from resources.alerts.courier import without_secrets

if TYPE_CHECKING:
    from tests.resources.alerts.conftest import Receiver

ALERT = Alert(
    "flights/late_arrival/candidate [2013-07-08] failed",
    "ValueError: no rows",
    link="http://ui/runs/1",
    suggestion="Materialize the labels.",
    links={"MLflow": "http://mlflow/1"},
)
SEND = """
import sys, time
from resources.alerts import Alert, AlertResource
alerts = AlertResource(channels={"webhook": sys.argv[1]}, window_seconds=60)
began = time.perf_counter()
assert alerts.send(Alert("the last word", "of a process", group="g"))
print(time.perf_counter() - began)
"""


def alerts(url: str | None, **options: float) -> AlertResource:
    return AlertResource(**{"channels": {"webhook": url} if url else {}, "timeout_seconds": 2.0, **options})


def states() -> list[tuple[str, str | None]]:
    return [(one.state, one.error) for sent in outbox.last(99) for one in sent.deliveries]


def test_without_a_channel_an_alert_is_logged_once_an_episode(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log is the channel that is always there; the severity is the level; what is known already is not repeated."""
    with caplog.at_level(logging.WARNING, logger="resources.alerts"):
        assert alerts(None).send(ALERT)
        assert alerts(None).send(ALERT)
        assert alerts(None).send(Alert("drift", "12 columns", severity="warning"))
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", str(ALERT)),
        ("WARNING", "drift: 12 columns"),
    ]


def test_a_webhook_gets_the_whole_alert_at_once(home: Path, receiver: Receiver) -> None:
    """The text is what a chat shows, beside the parts for whoever reads them."""
    assert alerts(receiver.url).send(ALERT)
    (body,) = receiver.wait_for(1)
    assert body["title"] == ALERT.title and body["severity"] == "error"
    told = "ValueError: no rows Materialize the labels. http://ui/runs/1 http://mlflow/1"
    assert body["text"] == f"{ALERT.title}: {told}"
    (part,) = body["alerts"]
    assert (part["suggestion"], part["link"], part["links"]) == (ALERT.suggestion, ALERT.link, ALERT.links)
    assert receiver.identities == [body["id"]]


def test_what_comes_together_arrives_as_one(home: Path, receiver: Receiver) -> None:
    """Ten of a group within the window, with their own texts."""
    sender = alerts(receiver.url, window_seconds=4.0)
    for number in range(10):
        assert sender.send(Alert(f"column {number}", "moved", "warning", group="flights/late_arrival"))
    (body,) = receiver.wait_for(1)
    assert body["title"] == "flights/late_arrival: 10 alerts" and body["severity"] == "warning"
    assert [one["title"] for one in body["alerts"]] == [f"column {number}" for number in range(10)]
    time.sleep(0.3)
    assert len(receiver.bodies) == 1


def test_what_another_attempt_may_mend_is_tried_again(home: Path, receiver: Receiver) -> None:
    """A receiver that is overloaded gets the same message with the same identity until it takes it."""
    receiver.statuses = [503, 429]
    alerts(receiver.url).send(ALERT)
    bodies = receiver.wait_for(3)
    assert len({body["id"] for body in bodies}) == 1 and len(set(receiver.identities)) == 1
    assert alerts(receiver.url).deliver(5) and states() == [("delivered", None)]


@pytest.mark.parametrize("status", [404, 301])
def test_a_refusal_is_given_up_visibly(
    home: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """One attempt, an error in the log, and what to do; the secret address is nowhere."""
    receiver.statuses = [status]
    alerts(receiver.url).send(ALERT)
    assert alerts(receiver.url).deliver(5)
    ((state, error),) = states()
    assert state == "given up" and str(status) in str(error) and "MLOPS_ALERT_WEBHOOK" in str(error)
    assert len(receiver.bodies) == 1 and "was not delivered by webhook" in caplog.text
    assert "hook-secret" not in caplog.text + str(error)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/closed", "not a url", "file:///etc/hostname", "http://[::1"])
def test_an_address_that_leads_nowhere_never_raises(home: Path, url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The outbox says why, without the address."""
    assert alerts(url).send(ALERT)
    alerts(url).deliver(1)
    ((_, error),) = states()
    assert error and url not in error + caplog.text


def test_a_receiver_that_hangs_holds_up_nothing(home: Path, receiver: Receiver) -> None:
    """A hundred alerts are sent in milliseconds each, and the process ends within its grace of two seconds."""
    receiver.hang = 30.0
    sender = alerts(receiver.url, timeout_seconds=30)
    sender.send(Alert("the first", "imports the libraries"))
    receiver.wait_for(1)
    took = []
    for number in range(100):
        began = time.perf_counter()
        assert sender.send(Alert(f"alert {number}", "x"))
        took.append(time.perf_counter() - began)
    assert sorted(took)[50] < 0.05 and sum(took) < 10
    began = time.monotonic()
    assert not sender.deliver(0.2) and time.monotonic() - began < 3


def test_one_channel_that_hangs_holds_up_no_other(home: Path, receiver: Receiver) -> None:
    receiver.hang = 30.0
    sender = AlertResource(channels={"webhook": receiver.url, "slack": "http://127.0.0.1:9/x"}, timeout_seconds=30)
    sender.send(ALERT)
    receiver.wait_for(1)
    deadline = time.monotonic() + 10
    while not any(error and "ConnectError" in error for _, error in states()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("hang", [0.0, 30.0])
def test_a_process_that_ends_tells_its_last_word_and_waits_for_nobody(
    home: Path, receiver: Receiver, hang: float
) -> None:
    """Its group is not waited for; a receiver that hangs costs two seconds, and the message stays for the sensor."""
    receiver.hang = hang
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", SEND, receiver.url], env=os.environ, check=True)
    assert [body["title"] for body in receiver.bodies] == ["the last word"]
    assert states()[0][0] == ("waiting" if hang else "delivered")
    assert time.monotonic() - began < 25


def test_processes_share_the_work(home: Path, receiver: Receiver) -> None:
    """Four that deliver the same outbox at once: each message arrives once."""
    silent = AlertResource(channels={"webhook": receiver.url})
    for number in range(30):
        outbox.put(Alert(f"alert {number}", "x"), ["webhook"], time.time(), window=0, repeat=60)
    script = (
        "import sys; from resources.alerts import AlertResource;"
        "sys.exit(not AlertResource(channels={'webhook': sys.argv[1]}).deliver(60))"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, receiver.url], env=os.environ) for _ in range(4)]
    assert [worker.wait(90) for worker in workers] == [0, 0, 0, 0]
    assert silent.deliver(5) and {state for state, _ in states()} == {"delivered"}
    assert sorted(body["title"] for body in receiver.bodies) == sorted(f"alert {number}" for number in range(30))


def test_a_database_that_is_away_is_told_and_never_raises(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log still has the alert; the caller is told that no channel will."""
    home.write_text("a file where the directory of state should be")
    assert not alerts(None).send(ALERT) and not alerts(None).resolve("x")
    assert str(ALERT) in caplog.text and "could not be written down" in caplog.text


def test_a_channel_that_does_not_exist_is_named() -> None:
    """With those that do."""
    with pytest.raises(UnknownChannelError, match=r"'pager'.*known: slack, smtp, webhook"):
        AlertResource(channels={"pager": "x"})


def test_an_address_named_by_a_variable_is_found_outside_of_runs(
    home: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command has no run that would look it up."""
    monkeypatch.setenv("SOME_HOOK", receiver.url)
    assert AlertResource(channels={"webhook": dg.EnvVar("SOME_HOOK")}).send(ALERT)
    receiver.wait_for(1)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("https://hooks.example/T0/hunter2?key=hunter3", "POST /T0/hunter2 with key=hunter3"),
        ("smtp://mlops:hunter2@mail:587?from=a@b&to=c@d", "mlops:hunter2, or hunter2"),
        ("http://[::1/hunter2?hunter3", "/hunter2 and hunter3"),
    ],
)
def test_no_error_shows_a_secret(address: str, parts: str) -> None:
    """Whole or in part."""
    said = without_secrets(f"cannot talk to {address}: {parts}", address)
    assert "hunter" not in said and said.startswith("cannot talk to ***: ")
