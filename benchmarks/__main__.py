"""`python -m benchmarks` runs every benchmark, `python -m benchmarks NAME ...` some of them.

A missed target is a finding, not an error: the exit status is zero when everything could be measured.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from rich.console import Console

from benchmarks.harness import publish, table
from resources.environment import home, quiet_telemetry

NAMES = (
    "definitions_load",
    "drift",
    "training_set",
    "offline_store",
    "event_log",
    "orchestration_overhead",
    "online_store",
    "streaming",
    "tracking",
    "serving",
    "serving_swaps",
    "artifacts",
    "push",
    "checkpoints",
    "search",
    "compute",
    "networks",
    "distributed",
    "spark",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure ours against peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; default: all")
    names = parser.parse_args().names or NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"there is no benchmark {', '.join(unknown)} (known: {', '.join(NAMES)})")
    quiet_telemetry()
    console = Console(width=None if sys.stdout.isatty() else 140)
    for name in names:
        console.print(f"[bold]{name}[/] ...")
        measurement = import_module(f"benchmarks.{name}").measure()
        if not measurement.figures:
            console.print(*measurement.details, sep="\n")
            continue
        path = publish(name, measurement.figures, home() / "benchmarks")
        console.print(table(name, measurement.figures), *measurement.details, f"Written to {path}\n", sep="\n")


if __name__ == "__main__":
    main()
