"""The points of a training loop in a file: written in microseconds, and there when the process is killed.

    <MLOPS_HOME>/mlflow/spool/<run id>.<random>.points     a point a line: milliseconds, step, name, value, tabs between
    ...points.offset                                       the byte after the last point that MLflow has
    ...points.lock                                         held by who delivers, for as long as its process lives

A line goes to the operating system in one call: a process that is killed (-9 too) loses no point that it logged. A
machine that loses its power may lose the last seconds, since nothing is forced to the disk. Half a line is no point.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from resources.environment import home

SUFFIX = ".points"
POINTS_AT_ONCE = 10_000
NAME = re.compile(r"(?!/)[\w./\- :]{1,250}")  # what MLflow takes
LARGEST_STEP = 2**63 - 1


class BadPointError(ValueError):
    """A point was logged that MLflow could not hold."""

    @classmethod
    def of(cls, name: object, value: object, step: object, problem: str) -> Self:
        return cls(
            f"The point {name!r} = {value!r} at step {step!r} cannot be logged: {problem}. "
            "A name has letters, digits and _ - . / : or spaces, a value is a number, a step a whole number."
        )


@dataclass(frozen=True)
class Point:
    """A metric's value at a step of the loop; `timestamp` is in milliseconds since 1970."""

    timestamp: int
    step: int
    name: str
    value: float


class Spool:
    """The writing end. Several may write to one file, also from several processes: each call is one append."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._known: set[str] = set()
        if (size := os.fstat(self._file).st_size) and os.pread(self._file, 1, size - 1) != b"\n":
            os.write(self._file, b"\n")  # half a line of a killed writer stays alone

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Raises BadPointError; nothing of the call is written then."""
        now = time.time_ns() // 1_000_000
        line = "".join(
            [f"{now}\t{step}\t{name}\t{self._number(name, value, step)}\n" for name, value in metrics.items()]
        )
        rest = memoryview(line.encode())
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def _number(self, name: str, value: float, step: int) -> str:
        if name not in self._known:
            if not NAME.fullmatch(name) or ".." in name.split("/"):
                raise BadPointError.of(name, value, step, "MLflow takes no such name")
            self._known.add(name)
        if type(step) is not int or not -LARGEST_STEP <= step <= LARGEST_STEP:
            raise BadPointError.of(name, value, step, "its step is no whole number")
        try:
            return repr(float(value))
        except (TypeError, ValueError) as problem:
            raise BadPointError.of(name, value, step, str(problem)) from problem

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def directory() -> Path:
    return home() / "mlflow" / "spool"


def new_path(run_id: str) -> Path:
    return directory() / f"{run_id}.{secrets.token_hex(4)}{SUFFIX}"


def run_of(path: Path) -> str:
    return path.name.partition(".")[0]


def points(path: Path, offset: int) -> Iterator[tuple[list[Point], int, int]]:
    """What lies after `offset`, in parts: points, the offset after them, and how many lines were no points."""
    with path.open("rb") as file:
        file.seek(offset)
        found: list[Point] = []
        bad = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            point = _point(line)
            if point is None:
                bad += 1
            else:
                found.append(point)
            if len(found) == POINTS_AT_ONCE:
                yield found, offset, bad
                found, bad = [], 0
        if found or bad:
            yield found, offset, bad


def _point(line: bytes) -> Point | None:
    try:
        at, step, name, value = line.decode().rstrip("\n").split("\t")
        return Point(int(at), int(step), name, float(value))
    except ValueError:  # also what is no UTF-8
        return None


def delivered(path: Path) -> int:
    """The byte after the last point that MLflow has."""
    noted = _beside(path, ".offset")
    return int(noted.read_text()) if noted.exists() else 0


def note_delivered(path: Path, offset: int) -> None:
    noted, fresh = _beside(path, ".offset"), _beside(path, ".offset.new")
    fresh.write_text(str(offset))
    os.replace(fresh, noted)


def lock_path(path: Path) -> Path:
    return _beside(path, ".lock")


def remove(path: Path) -> None:
    """Forget a spool of which MLflow has everything."""
    for one in (path, _beside(path, ".offset"), lock_path(path)):
        one.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
