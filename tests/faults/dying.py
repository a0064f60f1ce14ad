"""Work on a home, in a process of its own that dies of SIGKILL at a named point.

The point is a call of the production code, named by where it is looked up and by words of its arguments; the process
patches that name for itself alone. Processes are forked from a server that has imported everything once, so that a
kill costs the work before it and no imports.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Platform

TESTS = Path(__file__).parents[1]
PRELOADED = ["dagster", "feast", "mlflow", "evidently", "xgboost", "conftest", "faults.warm"]
WORK_SECONDS = 120
Work = Callable[["Platform"], object]  # a function of a file that a process can import


class Do:
    """A verb of the platform with its arguments, as work."""

    def __init__(self, verb: str, *args: Any, **kwargs: Any) -> None:
        self.verb, self.args, self.kwargs = verb, args, kwargs

    def __call__(self, platform: Platform) -> Any:
        return getattr(platform, self.verb)(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Kill:
    """The call of `at` (`module:attribute`) whose arguments, as text, match `about`; before it, or right after it."""

    at: str
    about: str = ""
    after: bool = False

    def set(self) -> None:
        """In this process, for good."""
        module, _, path = self.at.partition(":")
        *owners, name = path.split(".")
        owner: Any = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        call = getattr(owner, name)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if not re.search(self.about, f"{args} {kwargs}"):
                return call(*args, **kwargs)
            if self.after:
                call(*args, **kwargs)
            return os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, dying)

    def __str__(self) -> str:
        return f"{'after' if self.after else 'before'} {self.at} {self.about}".strip()


def ended(home: Path, work: Work, kill: Kill | None = None, *, within: float | None = None) -> int:
    """Do `work` in a process of its own; its exit code: 0 when it came to its end, -9 when it was killed.

    It is killed at `kill`, or when it has worked for `within` seconds.
    """
    process = _server().Process(target=_work, args=(str(home), dict(os.environ), work, kill))
    process.start()
    process.join(WORK_SECONDS if within is None else within)
    if process.is_alive():
        assert within is not None, f"the work did not end within {WORK_SECONDS} s"
        process.kill()
        process.join()
    code = process.exitcode
    assert code is not None
    return code


def kill_during(home: Path, work: Work, kill: Kill) -> None:
    """Do `work` until it is killed at `kill`; a point that is never reached is an error."""
    code = ended(home, work, kill)
    assert code == -signal.SIGKILL, f"it ended with {code} and was not killed {kill}"


def started(home: Path, work: Work) -> Any:
    """The process of `work`, running; whoever starts it ends it."""
    process = _server().Process(target=_work, args=(str(home), dict(os.environ), work, None))
    process.start()
    return process


def _server() -> Any:
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))  # where the processes find this file and the fixtures
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _work(home: str, environment: dict[str, str], work: Work, kill: Kill | None) -> None:
    from conftest import _opened

    os.environ.clear()
    os.environ.update(environment)
    warnings.simplefilter("ignore")  # the parent's tests say them
    with _opened(Path(home)) as platform:
        if kill:
            kill.set()
        result: Any = work(platform)
        assert getattr(result, "ok", True), result.trouble
