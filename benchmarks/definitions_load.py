"""How long a process takes that loads the definitions, against one that only imports Dagster.

A whole process, from start to exit, is what every run and every command pays. The other two figures have no target:
the import alone, by the process's own clock, and the whole process with every asset and job resolved, as a
server does it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from benchmarks.harness import Figure, Measurement, in_turn, require_equal, seconds
from resources.environment import PROJECT

LOAD = "import mlops_assets.definitions"
RESOLVE = "from mlops_assets.definitions import defs; defs.get_repository_def()"
PEER = "import dagster"
TARGET = 1.5
Side = Callable[[], float]


def measure(rounds: int = 9) -> Measurement:
    """The first run of each side is not timed: it shows that the code works, and leaves its bytecode behind."""
    require_equal("what they print", [run(LOAD), run(RESOLVE)], [run(PEER)] * 2)
    return Measurement(
        [
            figure("definitions_load", whole(LOAD), whole(PEER), rounds, TARGET),
            figure("definitions_load.import_alone", alone(LOAD), alone(PEER), rounds),
            figure("definitions_load.resolved", whole(RESOLVE), whole(PEER), rounds),
        ]
    )


def figure(name: str, ours: Side, peer: Side, rounds: int, target: float | None = None) -> Figure:
    return Figure(name, *in_turn(ours, peer, rounds), PEER, target=target)


def whole(code: str) -> Side:
    """Seconds of a process that runs the code, with its start and its exit."""
    return lambda: seconds(lambda: run(code))


def alone(code: str) -> Side:
    """Seconds that the code takes by the clock of the process that runs it."""
    timed = f"import time; started = time.perf_counter(); {code}; print(time.perf_counter() - started)"
    return lambda: float(run(timed))


def run(code: str) -> str:
    """What the code prints in a process of its own; raises CalledProcessError when it fails."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.PIPE, text=True).stdout
