"""Several processes come to the model of one, whatever becomes of them."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.trainers import TrainerParameterError, trainer_named
from mlops_assets.trainers.distributed.fit import fitted_by
from mlops_assets.trainers.distributed.lost import LostWorkersError, TooManyWorkersError, WorkerRaisedError
from mlops_assets.trainers.networks.fitting import Problem, Settings
from mlops_assets.trainers.networks.network import Network
from mlops_assets.trainers.networks.preparation import Preparation
from resources.environment import PROJECT
from resources.hardware import CPU, Device
from tests.mlops_assets.trainers.distributed.fits import NET, GivenUpError, equal, fit, killing, rows

pytestmark = pytest.mark.slow

RELATIVE = 1e-4  # of the loss: sums in another order come between, and nothing else
WORKER = "mlops_assets.trainers.distributed.worker"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The log lines of the fit so far."""
    caplog.set_level(logging.INFO, logger="mlops_assets")
    return lambda: caplog.messages


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Network, dict[int, float]]:
    """What two workers come to, and the loss after each epoch."""
    scores: dict[int, float] = {}
    return fit(progress=Progress(follower=scores.__setitem__), workers=2), scores


def workers(of: psutil.Process | None = None) -> list[psutil.Process]:
    """The processes that fit, below one."""
    return [one for one in (of or psutil.Process()).children(recursive=True) if WORKER in _command(one)]


def _command(of: psutil.Process) -> list[str]:
    try:
        return of.cmdline()
    except psutil.NoSuchProcess:  # a zombie has none either
        return []


def gone(processes: list[psutil.Process], within: float = 60.0) -> bool:
    return not psutil.wait_procs(processes, timeout=within)[1]


def test_several_workers_come_to_the_loss_of_one(undisturbed: tuple[Network, dict[int, float]]) -> None:
    """In each epoch, and to its weights; of the last batch one worker has all and the other nothing."""
    (together, losses), alone = undisturbed, dict[int, float]()
    one = fit(progress=Progress(follower=alone.__setitem__))
    assert list(losses) == list(alone) == list(range(NET["epochs"]))
    np.testing.assert_allclose(list(losses.values()), list(alone.values()), rtol=RELATIVE)
    assert together.epochs == one.epochs
    for a, b in zip(one.layers, together.layers, strict=True):
        np.testing.assert_allclose(a.weight, b.weight, atol=1e-4)


def test_a_worker_that_is_killed_changes_nothing(
    tmp_path: Path, said: Callable[[], list[str]], undisturbed: tuple[Network, dict[int, float]]
) -> None:
    """All begin again from the last checkpoint, to the model of an undisturbed fit, to the byte.

    The log names what it died of, each score is heard once, and nothing but the checkpoint stays.
    """
    heard, progress = dict[int, float](), killing(tmp_path, said, worker=1)
    strike = progress.follower
    assert strike
    progress.follower = lambda epoch, score: (heard.__setitem__(epoch, score), strike(epoch, score))[0]
    disturbed = fit(progress=progress, workers=2)
    lines = "\n".join(said())
    assert "exitcode: -9" in lines and "continuing a after" in lines
    assert heard == undisturbed[1] and list(heard) == sorted(heard)
    assert [path.name for path in tmp_path.iterdir()] == ["a.checkpoint"]
    assert equal(disturbed, undisturbed[0])


def test_a_fit_that_is_given_up_leaves_no_process_and_never_listened_beyond_loopback() -> None:
    """As a search does that has seen enough of a trial: what follows the fit raises, and its workers are gone."""
    before, found = set(psutil.Process().children(recursive=True)), list[psutil.Process]()
    listening: set[str] = set()

    def follow(epoch: int, _: float) -> None:
        found.extend({*psutil.Process().children(recursive=True)} - before)
        sockets = [one for process in found for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
        listening.update(one.laddr.ip for one in sockets)
        raise GivenUpError(epoch)

    with pytest.raises(GivenUpError):
        fit(progress=Progress(follower=follow), workers=2, epochs=10_000)
    assert len(found) >= 3 and gone(found)
    assert listening <= {"127.0.0.1", "::1"}


def test_what_a_worker_raises_ends_the_fit_at_once() -> None:
    """Another attempt would come to the same: the error is told with the worker's own traceback."""
    x, y = rows(100)
    prepared = Preparation.fit(x)
    drawn = Network.drawn("classification", prepared, (4,), seed=0)
    problem = Problem(drawn, prepared(x), y.astype(np.float32), None, Settings.of("net", {"hidden": (4,)}), 0)
    with pytest.raises(WorkerRaisedError, match=r"ValueError: Target size.*\n(.*\n)*.*torch\.py"):
        fitted_by(2, problem, NO_CHECKPOINTS, CPU, "full")


def test_workers_whose_watch_is_lost_end_and_are_told_of() -> None:
    """The process that watches them dies: so do they, and the error says of what."""
    found: list[psutil.Process] = []

    def follow(epoch: int, _: float) -> None:
        if not found:
            found.extend(workers())
            found[0].parent().kill()  # type: ignore[union-attr]

    with pytest.raises(LostWorkersError, match=r"2 workers was lost.*watched them was ended by SIGKILL"):
        fit(progress=Progress(follower=follow), workers=2, epochs=10_000)
    assert len(found) == 2 and gone(found)


def test_a_training_that_is_killed_takes_its_workers_along() -> None:
    """Nothing goes on that would write where the next training does."""
    code = "from tests.mlops_assets.trainers.distributed.fits import fit; fit(workers=2, epochs=10**6, patience=10**6)"
    training = psutil.Process(subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT).pid)
    until, found = time.monotonic() + 120, list[psutil.Process]()
    while len(found) < 2 and time.monotonic() < until:
        time.sleep(0.2)
        found = workers(training)
    watch = found[0].parent()
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert watch and gone([*found, watch])


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"workers": 0}, "'workers' is 0. Give a whole number above 0"),
        ({"workers": "two"}, "'workers' is 'two'"),
        ({"workers": True}, "'workers' is True"),
        ({"worker": 2}, "'worker' is not known. It knows: hidden.*, workers, precision"),
        ({"precision": "half"}, "'precision' is 'half'. Give one of auto, full, mixed"),
    ],
    ids=str,
)
def test_a_parameter_that_is_none_is_refused_where_it_is_declared(params: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerParameterError, match=words):
        trainer_named("TorchRegressor", **params)


@pytest.mark.parametrize(
    ("device", "params", "words"),
    [
        (Device("mps", "M3", 16.0), {"workers": 2}, "workers' is 2 on Apple's one GPU"),
        (Device("mps", "M3", 16.0), {"precision": "mixed"}, "precision' is 'mixed' on mps"),
        (Device("cuda", "H100", 80.0), {"workers": 99}, "99 workers needs 99 GPU .1 each., and this machine has"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_a_device_cannot_do_is_refused_before_anything_starts(
    device: Device, params: dict[str, Any], words: str
) -> None:
    trainer, before = trainer_named("TorchClassifier", **{**NET, **params}), set(psutil.Process().children())
    with pytest.raises((TrainerParameterError, TooManyWorkersError), match=words):
        trainer.fit(*rows(100), None, None, {}, 0, NO_CHECKPOINTS, device)
    assert {*psutil.Process().children()} <= before
