"""A fit as its workers find it, by path: nothing of it travels as code, and a worker that begins again reads it anew.

<directory>/job.json        how it is fitted, on what, and where its checkpoints lie
            drawn/          the net as it was drawn
            x.npy, y.npy    the prepared rows and their targets; x_valid.npy and y_valid.npy where there are some
            told.jsonl      what the workers say while they work: scores and log lines
            raised-<n>.json what worker n raised
            fitted/         the net that came of it, put there by rename
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mlops_assets.checkpoints import Progress, publish
from mlops_assets.trainers.networks.network import Network
from resources.hardware import Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers.networks.fitting import Problem
    from mlops_assets.trainers.torch import Precision

JOB, TOLD, FITTED = "job.json", "told.jsonl", "fitted"


@dataclass(frozen=True)
class Job:
    """`threads` and `device` are a worker's; on CUDA each has a device of that kind to itself."""

    directory: Path
    workers: int
    threads: int
    device: Device
    precision: Precision
    seed: int
    settings: Mapping[str, Any]
    checkpoints: Mapping[str, Any]

    def write(self, problem: Problem) -> None:
        """Everything that the workers read, `job.json` last."""
        import numpy as np

        arrays = {"x": problem.x, "y": problem.y}
        if problem.valid:
            arrays |= dict(zip(("x_valid", "y_valid"), problem.valid, strict=True))
        for name, array in arrays.items():
            np.save(self.directory / f"{name}.npy", array, allow_pickle=False)
        (self.directory / "drawn").mkdir()
        problem.network.write(self.directory / "drawn")
        document = asdict(self) | {"directory": str(self.directory)}
        publish(self.directory / JOB, json.dumps(document).encode())

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Raises FileNotFoundError on a machine that does not see it."""
        if not (directory / JOB).is_file():
            raise FileNotFoundError(
                f"{directory} holds no fit here, on {platform.node()}: all workers need one disk, "
                "or a volume mounted at the same place. Let the pipeline keep checkpoints (they lie there), or use one."
            )
        document = json.loads((directory / JOB).read_bytes())
        return cls(**document | {"directory": directory, "device": Device(**document["device"])})

    def array(self, name: str) -> np.ndarray:
        """One of the arrays, left on disk until its rows are asked for."""
        import numpy as np

        found: np.ndarray = np.load(self.directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return found

    @property
    def is_judged(self) -> bool:
        """Whether there are validation rows."""
        return (self.directory / "x_valid.npy").exists()

    def progress(self, leads: bool) -> Progress:
        """All workers go on from the same checkpoint; the one that leads writes it, and tells the scores."""
        kept = dict(self.checkpoints)
        named = kept.pop("path")
        path = Path(named) if named else None
        if not leads:
            return Progress(path, kept["made_from"])
        return Progress(path, **kept, watch=lambda *told: self.tell(score=told))

    def tell(self, **what: Any) -> None:
        """A line to who started the fit, written at once."""
        with (self.directory / TOLD).open("a") as file:
            file.write(json.dumps(what) + "\n")

    def publish(self, network: Network) -> None:
        beside = self.directory / f"{FITTED}.partial"
        beside.mkdir(exist_ok=True)
        network.write(beside)
        shutil.rmtree(self.directory / FITTED, ignore_errors=True)  # of an attempt whose other workers died at the end
        beside.rename(self.directory / FITTED)

    @contextmanager
    def reported(self, rank: int) -> Iterator[None]:
        """Write down what the block raises, for who is far from its traceback.

        What torch raises of a worker that was lost is a RuntimeError, and worth another attempt; the rest is `final`.
        """
        try:
            yield
        except Exception as problem:
            told = (type(problem).__name__, str(problem), traceback.format_exc())
            raised = Raised(rank, *told, at=time.time(), final=not isinstance(problem, RuntimeError))
            publish(self.directory / f"raised-{rank}.json", json.dumps(raised).encode())
            raise

    def raised(self) -> list[Raised]:
        """What workers raised in the last attempt, the first first: the others' follows from it."""
        found = [Raised(*json.loads(path.read_bytes())) for path in self.directory.glob("raised-*.json")]
        return sorted(found, key=lambda one: one.at)


class Raised(NamedTuple):
    """An error of a worker."""

    rank: int
    kind: str
    message: str
    trace: str
    at: float
    final: bool


class Forward(logging.Handler):
    """Log lines of a worker to who started the fit."""

    def __init__(self, job: Job, level: int = logging.INFO) -> None:
        super().__init__(level)
        self._job = job

    def emit(self, record: logging.LogRecord) -> None:
        self._job.tell(log=[record.levelno, self.format(record)])
