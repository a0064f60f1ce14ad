"""MLflow away for a while: asked again while it may come back, then an error that says so, then continued.

A real server, behind a door of the test's own that can be shut: the address refuses connections, as that of a server
that is being restarted does.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conftest import FIRST_CUTOFF

from resources.mlflow import MlflowResource, default_artifact_root, server_command

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Platform

pytestmark = pytest.mark.slow


class Door:
    """A port that leads to another one while it is open, and refuses while it is shut."""

    def __init__(self, behind: int) -> None:
        self.behind, self.port = behind, free_port()
        self._listening: socket.socket | None = None
        self._through: list[socket.socket] = []

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._let_in, args=(self._listening,), daemon=True).start()

    def shut(self) -> None:
        """Nobody comes in any more, and who is inside is thrown out."""
        if self._listening:
            self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
        for one in self._through:
            one.close()
        self._listening, self._through = None, []

    def _let_in(self, listening: socket.socket) -> None:
        while True:
            try:
                outside, _ = listening.accept()
            except OSError:
                return  # shut
            inside = socket.create_connection(("127.0.0.1", self.behind))
            self._through += [outside, inside]
            for one, other in ((outside, inside), (inside, outside)):
                threading.Thread(target=_carry, args=(one, other), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the door was shut


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def door(shop: Platform, tmp_path: Path) -> Iterator[Door]:
    """The way to a server over the home's own store, open."""
    port = free_port()
    door = Door(port)
    database = f"sqlite:///{shop.home / 'mlflow' / 'mlflow.db'}"
    argv, variables = server_command(port, tracking_uri=database, artifact_root=default_artifact_root())
    argv[argv.index("--allowed-hosts") + 1] += f",127.0.0.1:{door.port}"
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(argv, env={**os.environ, **variables}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while not answers(port):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
            time.sleep(0.1)
        door.open()
        yield door
    finally:
        door.shut()
        for one in [*psutil.Process(server.pid).children(recursive=True), server]:
            one.kill()
        server.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def over_http(shop: Platform, door: Door, retries: int) -> None:
    shop.resources["mlflow"] = MlflowResource(tracking_uri=f"http://127.0.0.1:{door.port}", retries=retries)


def when_it_logs(monkeypatch: pytest.MonkeyPatch, happens: Any) -> None:
    """Something happens at the end of the training, as the model's files are to be logged; once."""
    log_directory, again = MlflowResource.log_directory, []

    def first(self: MlflowResource, *args: Any) -> None:
        if not again:
            again.append(True)
            happens()
        log_directory(self, *args)

    monkeypatch.setattr(MlflowResource, "log_directory", first)


def test_a_server_that_comes_back_in_time_is_asked_again(
    shop: Platform, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away for two seconds while a candidate is logged: the run succeeds, and everything is there once."""
    over_http(shop, door, retries=4)

    def away() -> None:
        door.shut()
        threading.Timer(2, door.open).start()

    when_it_logs(monkeypatch, away)
    ran = shop.run("candidate", partition=FIRST_CUTOFF)
    assert ran.ok, ran.trouble
    assert shop.published["versions"] == ["3", "2", "1"]
    assert [run.info.status for run in shop.mlflow_runs()] == ["FINISHED"] * 3


def test_a_server_that_stays_away_fails_the_run_truthfully_and_the_next_one_goes_on(
    shop: Platform, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is registered, the error names the address and what to do, and traffic is untouched. When it is back, the
    run again takes up what was trained: in the same MLflow run, with no trial twice.
    """
    over_http(shop, door, retries=1)
    before = shop.published
    when_it_logs(monkeypatch, door.shut)
    ran = shop.run("candidate", partition=FIRST_CUTOFF)
    assert not ran.ok
    assert f"MLflow at http://127.0.0.1:{door.port} did not answer" in ran.trouble and "make up" in ran.trouble
    door.open()
    assert shop.published == before
    again = shop.run("candidate", partition=FIRST_CUTOFF)
    assert again.ok, again.trouble
    assert shop.published["versions"] == ["3", "2", "1"]
    assert [run.info.status for run in shop.mlflow_runs()] == ["FINISHED"] * 3
    assert len(shop.trials(again.facts["candidate"]["mlflow_run_id"])) == shop.model.search.trials


def test_what_needs_no_registry_goes_on_without_it(shop: Platform, door: Door) -> None:
    """Answers, their table, scores and reports: the endpoint's release and the Bento are files of their own."""
    over_http(shop, door, retries=0)
    door.shut()
    day = "2013-07-01"
    for link in ("predictions", "scores", "drift_report", "performance_report", "quality_report"):
        ran = shop.run(link, partition=day)
        assert ran.ok, f"{link}: {ran.trouble}"
