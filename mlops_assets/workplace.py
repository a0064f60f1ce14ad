"""Where a training works until its model is registered: a directory that outlives the run, found again by the next.

    MLOPS_HOME/work/training/<name>/       what `checkpoints` lays down, the bundle, and mlflow_run.json
                             <name>.lock   held while a run works there; a process that dies lets go of it

The name says what the training is made from, so that only the same work is taken up again. A directory goes when its
work is done, or a week after the last sign of life in it. An MLflow run that nobody ended is ended as KILLED an hour
after that: work that is taken up later goes on all the same, in a new run.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mlops_assets.checkpoints import publish
from resources.environment import home

if TYPE_CHECKING:
    from filelock import FileLock

KEPT, IDLE = timedelta(days=7), timedelta(hours=1)
NOTE = "mlflow_run.json"

logger = logging.getLogger(__name__)


class WorkplaceTakenError(RuntimeError):
    """Two runs want to do the very same training at the same time."""

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(
            f"Another run is training {name} from the same rows, code and libraries right now. "
            "Wait for it, or end it in Dagster; then materialize this again."
        )


@dataclass(frozen=True)
class Workplace:
    """The directory of one training."""

    path: Path

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this work was begun, or last taken up, in."""
        note = self.path / NOTE
        return str(json.loads(note.read_bytes())["run_id"]) if note.is_file() else None

    def note_run(self, run_id: str) -> None:
        publish(self.path / NOTE, json.dumps({"run_id": run_id}).encode())


@contextmanager
def workplace(name: str) -> Iterator[Workplace]:
    """The directory of a training, alone; it is removed when the block ends well, and stays when it does not.

    Raises WorkplaceTakenError.
    """
    from filelock import Timeout

    place = _root() / name
    lock = _lock(place)
    try:
        lock.acquire()
    except Timeout as problem:
        raise WorkplaceTakenError.of(name) from problem
    try:
        place.mkdir(exist_ok=True)
        yield Workplace(place)
        shutil.rmtree(place)
        _unlink(place)
    finally:
        lock.release()


def clean(abandon: Callable[[str], bool], kept: timedelta = KEPT, idle: timedelta = IDLE) -> list[str]:
    """End the MLflow runs of work that lies `idle`, and remove what lies longer than `kept`; returns its names.

    `abandon` ends a run if it still goes. Work that is being done is left alone.
    """
    from filelock import Timeout

    removed = []
    for place in sorted(path for path in _root().iterdir() if path.is_dir()):
        lock = _lock(place)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            age, run_id = time.time() - _last_sign(place), Workplace(place).run_id
            if run_id and age > idle.total_seconds() and abandon(run_id):
                logger.warning("%s was broken off; its MLflow run %s ends as KILLED", place.name, run_id)
            if age > kept.total_seconds():
                shutil.rmtree(place)
                _unlink(place)
                removed.append(place.name)
        finally:
            lock.release()
    return removed


def _root() -> Path:
    root = home() / "work" / "training"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _lock(place: Path) -> FileLock:
    """Fails at once where another process, or thread, holds it."""
    from filelock import FileLock

    return FileLock(place.with_name(f"{place.name}.lock"), blocking=False, thread_local=False)


def _unlink(place: Path) -> None:
    """While it is held: who waited for the file sees that it is gone, and makes a new one."""
    place.with_name(f"{place.name}.lock").unlink(missing_ok=True)


def _last_sign(place: Path) -> float:
    return max(path.stat().st_mtime for path in (place, *place.rglob("*")))
