"""What orchestration costs in the demo: the part of its wall time that is neither work nor simulation.

The whole demo runs in a fresh home, in a process of its own, and each moment of its main thread is charged to one
account:

- work: the functions of the assets themselves (of a generator its own steps, from `next` to `yield`), and the
  IO manager reading and writing their tables;
- simulation: what stands for the world around the platform, and is run by no orchestrator: passengers' requests
  with the hourly stream between them, starting, awaiting and stopping the endpoint's process, the `mlops`
  commands run as processes of their own;
- orchestration: everything else. The process's start and end, importing Dagster and loading definitions, setting
  runs up, the event log (also when an asset writes to it), checks and metadata once they are yielded, sensors'
  ticks, telling the story.

Importing a library is charged to whoever imports it. By Dagster's own events, STEP_START to STEP_SUCCESS, the
event log would count as work; here it does not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from benchmarks.demo_books import ASSETS, COMMANDS, EVENTS, IMPORTS, REQUESTS, TABLES, WAITING
from benchmarks.harness import Figure, Measurement, fresh_home
from benchmarks.ledger import REST, Account
from resources.environment import PROJECT

TARGET = 0.25
PROCESS = "start and end of the process"
PARTS = {
    "work": (ASSETS, TABLES),
    "simulation": (REQUESTS, WAITING, COMMANDS),
    "orchestration": (EVENTS, PROCESS, REST),
}
PART_OF = {name: part for part, names in PARTS.items() for name in names}
OUTSIDE = "before, between and after the steps"
Books = Mapping[Account, float]


class DemoFailedError(RuntimeError):
    """The demo ended before its story did."""

    @classmethod
    def of(cls, code: int, said: str) -> DemoFailedError:
        return cls("\n".join([f"The demo ended with exit status {code}. Its last words:", *said.splitlines()[-30:]]))


def measure() -> Measurement:
    """One run of the demo: both sides of each figure are parts of the same minutes."""
    with fresh_home() as home:
        started = time.perf_counter()
        books = run_demo(home / "books.json")
        wall = time.perf_counter() - started
    books = {**books, (PROCESS,): wall - sum(books.values())}
    return Measurement(figures(books), [by_name(books), by_step(books)])


def run_demo(path: Path) -> Books:
    """The books of a demo run in a process of its own. Raises DemoFailedError."""
    command = [sys.executable, "-m", "benchmarks.demo_books", str(path)]
    ran = subprocess.run(command, check=False, cwd=PROJECT, capture_output=True, text=True)
    if ran.returncode:
        raise DemoFailedError.of(ran.returncode, ran.stdout + ran.stderr)
    return {tuple(entry["account"]): entry["seconds"] for entry in json.loads(path.read_text())}


def figures(books: Books) -> list[Figure]:
    """Orchestration as a share of all that is no simulation, and all that is no work as a share of everything."""
    spent = by_part(books)
    platform, wall = spent["work"] + spent["orchestration"], sum(spent.values())
    return [
        Figure("orchestration_overhead", spent["orchestration"], platform, "work and orchestration", target=TARGET),
        Figure("orchestration_overhead.all_but_work", wall - spent["work"], wall, "wall time", target=TARGET),
    ]


def by_part(books: Books) -> dict[str, float]:
    """Seconds of work, simulation and orchestration."""
    return {part: sum(s for account, s in books.items() if PART_OF[name_of(account)] == part) for part in PARTS}


def name_of(account: Account) -> str:
    """The innermost name that is told apart; the step before it and the imports after it only describe it."""
    return next((name for name in reversed(account) if name in PART_OF), REST)


def by_name(books: Books) -> Table:
    """Where the time went, with the imports that are part of it."""
    shown = Table("part", "name", "seconds", "imports", "share", title="Where the time went", title_justify="left")
    wall = sum(books.values())
    for name, part in PART_OF.items():
        spent = {account: seconds for account, seconds in books.items() if name_of(account) == name}
        imports = sum(seconds for account, seconds in spent.items() if account[-1] == IMPORTS)
        total = sum(spent.values())
        shown.add_row(part, name, f"{total:.1f}", f"{imports:.1f}", f"{total / wall:.1%}")
    return shown


def by_step(books: Books) -> Table:
    """The parts of each step of the demo."""
    shown = Table("step", *PARTS, title="Seconds by step of the demo", title_justify="left")
    steps: defaultdict[str, dict[Account, float]] = defaultdict(dict)
    for account, seconds in books.items():
        steps[step_of(account)][account] = seconds
    for step, spent in steps.items():
        shown.add_row(step, *(f"{seconds:.1f}" for seconds in by_part(spent).values()))
    return shown


def step_of(account: Account) -> str:
    return OUTSIDE if account[0] in PART_OF or account[0] == IMPORTS else account[0]
