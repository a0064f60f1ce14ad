"""What every benchmark does alike: both sides in turn, the median of the rounds, one ratio against one target.

The rule that must never break: what is timed was first shown to be equal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Self
from unittest.mock import patch

from rich.table import Table


class UnequalResultsError(AssertionError):
    """Two sides that are to be timed against each other do not do the same."""

    @classmethod
    def of(cls, what: str, ours: object, peer: object) -> Self:
        return cls(f"{what} is not the same on both sides: ours {ours}, the peer's {peer}. Nothing was timed.")


@dataclass(frozen=True)
class Figure:
    """One measured pair; `ratio` is ours to the peer's, and a target is the most that it may be."""

    name: str
    ours: float
    peer: float
    peer_name: str
    unit: str = "s"
    target: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    @property
    def meets(self) -> bool | None:
        return None if self.target is None else self.ratio <= self.target

    def line(self) -> str:
        """The figure as one line of JSON."""
        return json.dumps({**vars(self), "ratio": self.ratio, "meets": self.meets})


@dataclass(frozen=True)
class Measurement:
    """A benchmark's figures, and tables that tell where the time went, or what could not be measured."""

    figures: Sequence[Figure]
    details: Sequence[Table | str] = ()


def require_equal(what: str, ours: Any, peer: Any) -> None:
    """Raises UnequalResultsError."""
    if ours != peer:
        raise UnequalResultsError.of(what, ours, peer)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The median of what each side says of itself; every other round the peer goes first."""
    taken: dict[Callable[[], float], list[float]] = {ours: [], peer: []}
    for number in range(rounds):
        for side in (ours, peer) if number % 2 == 0 else (peer, ours):
            taken[side].append(side())
    return median(taken[ours]), median(taken[peer])


@contextmanager
def fresh_home() -> Iterator[Path]:
    """An empty MLOPS_HOME of the local environment for the time of the block."""
    with (
        TemporaryDirectory(prefix="mlops-benchmark-") as directory,
        patch.dict(os.environ, {"MLOPS_HOME": directory, "MLOPS_ENV": "local"}),
    ):
        yield Path(directory)


def publish(name: str, figures: Sequence[Figure], directory: Path) -> Path:
    """Replace `<name>.jsonl` in `directory` with these figures, a line each; returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.jsonl"
    beside = path.with_name(f".{name}.{os.getpid()}")
    beside.write_text("".join(f"{figure.line()}\n" for figure in figures))
    os.replace(beside, path)
    return path


def table(name: str, figures: Sequence[Figure]) -> Table:
    """The figures as people read them."""
    columns = ("figure", "ours", "peer", "unit", "ratio", "target", "meets", "the peer is")
    shown = Table(*columns, title=name, title_justify="left")
    verdicts = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for figure in figures:
        target = "" if figure.target is None else f"<= {figure.target:g}"
        numbers = (f"{figure.ours:.3f}", f"{figure.peer:.3f}", figure.unit, f"{figure.ratio:.2f}")
        shown.add_row(figure.name, *numbers, target, verdicts[figure.meets], figure.peer_name)
    return shown
