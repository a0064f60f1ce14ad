"""`mlops up` starts the real services, each answers, and Ctrl-C leaves nothing running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from resources.environment import PROJECT

WAIT_SECONDS = 150


@pytest.fixture
def up(home: Path) -> Iterator[subprocess.Popen[str]]:
    """The command as a user runs it, in a session of its own so that no signal meant for it reaches the tests."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_assets.cli", "up"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    for left in [*descendants(process.pid), process]:
        left.kill()
    process.wait(10)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def lines_until_ready(process: subprocess.Popen[str], names: set[str]) -> dict[str, str]:
    """What each service said of itself; fails with everything printed when the command ends first."""
    said, printed = {}, []
    deadline = time.monotonic() + WAIT_SECONDS
    assert process.stdout is not None
    while names - said.keys() and time.monotonic() < deadline:
        line = process.stdout.readline()
        assert line, f"'mlops up' ended early: {printed}"
        printed.append(line)
        if (name := line.split()[0].rstrip(":")) in names:
            said[name] = line
    assert said.keys() == names, f"not ready in {WAIT_SECONDS} s: {sorted(names - said.keys())}, said: {printed}"
    return said


def test_every_service_answers_and_ctrl_c_leaves_nothing_running(up):
    said = lines_until_ready(up, {"dagster", "daemon", "mlflow", "reports", "endpoint"})
    urls = [found.group() for line in said.values() if (found := re.search(r"http://127\.0\.0\.1:\d+", line))]
    answers = [urllib.request.urlopen(url, timeout=20).status for url in urls]
    family = descendants(up.pid)
    os.kill(up.pid, signal.SIGINT)
    assert up.wait(60) == 0
    assert len(urls) == 4  # the daemon has no address
    assert set(answers) == {200}
    assert len(family) >= 5
    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
