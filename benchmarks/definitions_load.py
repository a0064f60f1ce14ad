"""How long a process takes that loads the definitions, against one that only imports Dagster.

Both are whole processes, from start to exit: what the UI, the daemon and every run pay each time.
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


def measure(rounds: int = 9) -> Measurement:
    """The import that a target is set for, and the import with every asset and job resolved, as a server does."""
    require_equal("what python -c exits with", [run(LOAD), run(RESOLVE)], [run(PEER)] * 2)
    return Measurement(
        [
            figure("definitions_load", LOAD, rounds, TARGET),
            figure("definitions_load.resolved", RESOLVE, rounds),
        ]
    )


def figure(name: str, code: str, rounds: int, target: float | None = None, peer: str = PEER) -> Figure:
    ours, theirs = in_turn(timed(code), timed(peer), rounds)
    return Figure(name, ours, theirs, f'python -c "{peer}"', target=target)


def timed(code: str) -> Callable[[], float]:
    return lambda: seconds(lambda: run(code))


def run(code: str) -> int:
    """Run the code in a process of its own; raises CalledProcessError when it fails."""
    return subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, stdout=subprocess.DEVNULL).returncode
