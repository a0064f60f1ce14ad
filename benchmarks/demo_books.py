"""Runs the demo in this process and keeps books: `python -m benchmarks.demo_books FILE` writes seconds by account.

What is told apart is named here; how each account counts is for `orchestration_overhead` to say. An account begins
with the step of the demo and ends with `imports` where a library was being imported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import _bootstrap  # every import passes through its `_find_and_load`
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.ledger import Ledger

ASSETS, TABLES = "functions of the assets", "IO manager"
REQUESTS, WAITING, COMMANDS = "requests and stream", "endpoint's process", "commands"
EVENTS, IMPORTS = "event log", "imports"


def keep_books(path: Path) -> int:
    """The demo's exit code; its books are written to `path`."""
    ledger = Ledger()
    with charging_imports(ledger):
        from mlops_assets import demo

        with charging_runs(ledger), charging_story(ledger):
            code = demo.run_demo()
    ledger.settle()
    path.write_text(json.dumps([{"account": account, "seconds": spent} for account, spent in ledger.spent.items()]))
    return code


@contextmanager
def charging_imports(ledger: Ledger) -> Iterator[None]:
    with ExitStack() as stack:
        _charge(stack, ledger, _bootstrap, "_find_and_load", IMPORTS)
        yield


@contextmanager
def charging_runs(ledger: Ledger) -> Iterator[None]:
    """What happens in any run of Dagster's: the functions of the assets, their tables, the events."""
    from dagster import DagsterInstance
    from dagster._core.execution.plan import compute_generator

    from resources.lake import ParquetIOManager

    with ExitStack() as stack:
        _charge(stack, ledger, compute_generator, "invoke_compute_fn", ASSETS)
        _charge(stack, ledger, ParquetIOManager, "handle_output", TABLES)
        _charge(stack, ledger, ParquetIOManager, "load_input", TABLES)
        _charge(stack, ledger, DagsterInstance, "handle_new_event", EVENTS)
        yield


@contextmanager
def charging_story(ledger: Ledger) -> Iterator[None]:
    """What the demo does beside running assets, and its steps."""
    from mlops_assets import demo, processes

    with ExitStack() as stack:
        _charge(stack, ledger, demo.Story, "replay", REQUESTS)
        _charge(stack, ledger, processes, "await_ready", WAITING)
        _charge(stack, ledger, demo.Story, "await_versions", WAITING)
        _charge(stack, ledger, demo.Story, "command", COMMANDS)
        _replace(stack, demo.Story, "step", lambda step: _steps(ledger, step))
        _replace(stack, demo, "_endpoint", lambda endpoint: _started_and_stopped(ledger, endpoint))
        yield


def _charge(stack: ExitStack, ledger: Ledger, owner: Any, name: str, account: str) -> None:
    _replace(stack, owner, name, lambda function: ledger.charging(account, function))


def _replace(stack: ExitStack, owner: Any, name: str, wrap: Any) -> None:
    stack.enter_context(patch.object(owner, name, wrap(getattr(owner, name))))


def _steps(ledger: Ledger, step: Any) -> Any:
    @contextmanager
    def charged(story: Any, name: str) -> Iterator[None]:
        with ledger.charge(name), step(story, name):
            yield

    return charged


def _started_and_stopped(ledger: Ledger, endpoint: Any) -> Any:
    """Charge the start and the stop of the endpoint's process, not the time that it runs beside us."""

    @contextmanager
    def charged(model: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            with ledger.charge(WAITING):
                started = stack.enter_context(endpoint(model))
            yield started
            with ledger.charge(WAITING):
                stack.close()

    return charged


if __name__ == "__main__":
    sys.exit(keep_books(Path(sys.argv[1])))
