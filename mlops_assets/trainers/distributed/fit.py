"""What the training sees of a fit by several workers: it starts them, hears them, and has the net that came of it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlops_assets.trainers import inside_ray, threads
from mlops_assets.trainers.distributed import on_ray, processes
from mlops_assets.trainers.distributed.job import FITTED, TOLD, Job
from mlops_assets.trainers.distributed.lost import WorkerRaisedError
from mlops_assets.trainers.networks.network import Network

if TYPE_CHECKING:
    from mlops_assets.checkpoints import Progress
    from mlops_assets.trainers.networks.fitting import Problem
    from mlops_assets.trainers.networks.network import Layer
    from mlops_assets.trainers.torch import Precision
    from resources.hardware import Device

LOOK_EVERY = 0.1  # seconds

logger = logging.getLogger(__name__)


def fitted_by(
    workers: int, problem: Problem, progress: Progress, device: Device, precision: Precision
) -> tuple[tuple[Layer, ...], int]:
    """The layers that a problem comes to, and after how many epochs.

    Raises OtherCheckpointError and TooManyWorkersError before a worker begins, LostWorkersError, WorkerRaisedError.
    """
    place = on_ray if inside_ray() else processes
    kept = progress.kept()  # the workers read it too; a wrong one is found before they begin
    with _directory(progress) as directory:
        checkpoints = {
            "path": str(progress.path.absolute()) if progress.path else None,
            "made_from": progress.made_from,
            "seconds": progress.seconds,
            "rounds": progress.rounds,
        }
        share = max(1, threads() // workers)
        job = Job(directory, workers, share, device, precision, problem.seed, asdict(problem.settings), checkpoints)
        place.refuse(job)
        job.write(problem)
        logger.info("fitted by %s workers of %s threads, %s", workers, share, place.__name__.rpartition(".")[2])
        with place.running(job) as ended:
            told = _Told(job, progress, kept.rounds if kept else 0)
            while not ended(LOOK_EVERY):
                told.pass_on()
                if final := next((one for one in job.raised() if one.final), None):
                    raise WorkerRaisedError.of(final)
            told.pass_on()
        network = Network.read(directory / FITTED)
    return network.layers, network.epochs


@contextmanager
def _directory(progress: Progress) -> Iterator[Path]:
    """Beside the checkpoints, which lie where all workers see them; else among the temporary files of this machine."""
    if progress.path is None:
        with TemporaryDirectory(prefix="mlops-workers-") as scratch:
            yield Path(scratch)
        return
    directory = progress.path.absolute().with_suffix(".workers")
    shutil.rmtree(directory, ignore_errors=True)  # of one that was killed
    directory.mkdir(parents=True)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


class _Told:
    """What the workers say, passed on as if the fit were here.

    A score that an attempt tells again, of a round before it, is told once: `rounds` are known from the checkpoint.
    """

    def __init__(self, job: Job, progress: Progress, rounds: int) -> None:
        self._path, self._progress = job.directory / TOLD, progress
        self._read, self._scored = 0, rounds - 1

    def pass_on(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.splitlines():
            self._say(json.loads(line))

    def _say(self, told: dict[str, list[object]]) -> None:
        match told:
            case {"log": [int(level), text]}:
                logger.log(level, "%s", text)
            case {"score": [int(at), float(score), bool(higher_is_better)]} if at > self._scored:
                self._scored = at
                self._progress.scored(at, score, higher_is_better)
