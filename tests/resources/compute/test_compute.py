"""Work goes out by name, JSON in and JSON out, on whatever kind of machine is configured."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resources.compute import (
    ComputeResource,
    EntrypointError,
    OtherEnvironmentError,
    UnknownComputeError,
    WorkerLostError,
    WorkFailedError,
    kinds,
)
from resources.environment import PROJECT
from tests.resources.compute.conftest import Do

pytestmark = pytest.mark.slow

HERE = "tests.resources.compute.errands"
ELSEWHERE = ["subprocess", "ray"]  # the other kinds' own tests say it of theirs


@pytest.mark.parametrize("kind", kinds())
def test_work_is_called_by_name(do: Do, kind: str) -> None:
    """The function named by the entrypoint gets the arguments; its JSON comes back."""
    assert do(kind, "copy:copy", {"rows": 3, "keys": ["a"]}) == {"rows": 3, "keys": ["a"]}


@pytest.mark.parametrize("entrypoint", ["copy", "no_such_module:f", "copy.no.such:f", "copy:no_such", "copy:__name__"])
def test_an_entrypoint_that_is_none_is_named(entrypoint: str) -> None:
    """No module, no function, nothing to call: the error quotes the entrypoint."""
    with pytest.raises(EntrypointError, match=entrypoint):
        ComputeResource().run(entrypoint, {})


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_names_an_entrypoint_that_is_none(do: Do, kind: str) -> None:
    with pytest.raises(EntrypointError, match="copy:no_such"):
        do(kind, "copy:no_such", {})


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_only_json_travels(kind: str, value: object) -> None:
    """What could not cross to another machine is refused here too, before anything is started."""
    with pytest.raises(EntrypointError, match="not JSON"):
        ComputeResource(kind=kind).run("copy:copy", {"value": value})


def test_the_works_own_error_is_raised() -> None:
    """A failure inside the work arrives as itself."""
    with pytest.raises(ValueError, match="no rows"):
        ComputeResource().run(f"{HERE}:fail", {"message": "no rows"})


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_an_error_of_another_process_is_told_with_its_traceback(do: Do, kind: str) -> None:
    with pytest.raises(WorkFailedError, match=r"ValueError: no rows(.|\n)*errands.py"):
        do(kind, f"{HERE}:fail", {"message": "no rows"})


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_another_process_logs_is_in_the_run(do: Do, kind: str) -> None:
    do(kind, f"{HERE}:talk", {"say": "trial 3: roc_auc 0.71"})
    assert any("trial 3: roc_auc 0.71" in event.user_message for event in do.events)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_worker_that_is_lost_is_replaced_as_often_as_declared(do: Do, kind: str, tmp_path: Path) -> None:
    """The next one does the work; the run's log says what became of the first."""
    begun = tmp_path / "begun"
    got = do(kind, f"{HERE}:die_at_first", {"path": str(begun)}, resources={"retries": 1})
    assert got == {"begun": 2}
    assert any("retries left: 0" in event.user_message for event in do.events)  # type: ignore[attr-defined]


def test_a_worker_that_is_always_lost_is_reported_at_last(do: Do, tmp_path: Path) -> None:
    """Two retries are three workers."""
    begun = tmp_path / "begun"
    with pytest.raises(WorkerLostError, match="exit code 3"):
        do("subprocess", f"{HERE}:leave", {"code": 3, "path": str(begun)}, resources={"retries": 2})
    assert begun.read_text() == "..."


def test_work_that_failed_is_not_begun_again(do: Do, tmp_path: Path) -> None:
    """Its error is the same each time."""
    begun = tmp_path / "begun"
    with pytest.raises(WorkFailedError):
        do("subprocess", f"{HERE}:fail", {"message": "", "path": str(begun)}, resources={"retries": 2})
    assert begun.read_text() == "."


def test_a_worker_that_is_killed_is_reported_with_the_signal(do: Do) -> None:
    """And never waited for."""
    with pytest.raises(WorkerLostError, match=r"was killed by SIGKILL|for want of memory"):
        do("subprocess", f"{HERE}:die", {"signal": signal.SIGKILL})
    with pytest.raises(WorkerLostError, match="died of SIGSEGV"):
        do("subprocess", f"{HERE}:die", {"signal": signal.SIGSEGV})


def test_a_worker_that_leaves_is_reported_with_its_exit_code(do: Do) -> None:
    with pytest.raises(WorkerLostError, match="exit code 3"):
        do("subprocess", f"{HERE}:leave", {"code": 3})


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_worker_with_other_packages_is_refused_before_it_begins(
    do: Do, kind: str, other_python: str, tmp_path: Path
) -> None:
    """Each difference is named."""
    marker = tmp_path / "began"
    with pytest.raises(OtherEnvironmentError, match=r"polars 0\.1\.0 instead of \d"):
        do(kind, f"{HERE}:touch", {"path": str(marker)}, python=other_python)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_a_worker_ends_with_the_run_that_asked(home: Path, kind: str, tmp_path: Path) -> None:
    """A run that is killed with -9 leaves no process behind that goes on writing."""
    told = tmp_path / "pid"
    ask = f"from {HERE} import ask; ask({str(told)!r}, {kind!r})"
    run = subprocess.Popen([sys.executable, "-c", ask], cwd=PROJECT)
    deadline = time.monotonic() + 240
    while not told.exists() or not told.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker = psutil.Process(int(told.read_text()))
    run.kill()
    run.wait()
    worker.wait(timeout=30)
    assert not worker.is_running()


def test_an_unknown_kind_lists_the_known() -> None:
    """A kind without a file is an error that names those that have one."""
    with pytest.raises(UnknownComputeError, match=r"'mainframe'.*local,.* subprocess"):
        ComputeResource(kind="mainframe").run("copy:copy", {})
