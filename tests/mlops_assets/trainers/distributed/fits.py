"""A fit to share, and one who kills its workers."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mlops_assets.checkpoints import Progress
from mlops_assets.trainers import trainer_named
from mlops_assets.trainers.networks.network import Network

NET = {"hidden": [16, 8], "epochs": 200, "patience": 200, "learning_rate": 0.003, "batch_size": 64}
ROWS = 64 * 6 + 1  # the last batch has one row: all but one worker have nothing of it


def rows(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5)).astype(np.float32)
    x[random.random(x.shape) < 0.05] = np.nan
    return x, (np.nan_to_num(x[:, 0] + x[:, 1] * x[:, 2]) > 0).astype(np.float64)


def fit(name: str = "TorchClassifier", progress: Progress | None = None, judged: bool = True, **params: Any) -> Network:
    trainer, valid = trainer_named(name, **{**NET, **params}), rows(101, seed=1) if judged else (None, None)
    model: Network = trainer.fit(*rows(ROWS), *valid, {}, 3, progress or Progress())
    return model


def equal(one: Network, other: Network) -> bool:
    """To the byte."""
    return one.epochs == other.epochs and all(
        np.array_equal(a.weight, b.weight) and np.array_equal(a.bias, b.bias)
        for a, b in zip(one.layers, other.layers, strict=True)
    )


def killing(path: Path, said: Callable[[], list[str]], worker: int, at: int = 8) -> Progress:
    """Checkpoints each fifth epoch; when epoch `at` is heard of, it kills a worker, whose process the log names."""
    struck: list[int] = []

    def follow(epoch: int, _: float) -> None:
        if epoch >= at and not struck:
            struck.extend(workers_said(said(), str(worker)))
            os.kill(struck[-1], signal.SIGKILL)

    return Progress(path / "a.checkpoint", {"rows": "these"}, seconds=None, rounds=5, follower=follow)


class GivenUpError(Exception):
    """Who follows the fit has seen enough."""


def errand(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A fit by two workers as work of a compute resource, one of them killed in its middle; then one given up."""
    lines = _Lines()
    logging.getLogger("mlops_assets").addHandler(lines)
    model = fit(progress=killing(Path(arguments["path"]), lambda: lines.said, worker=1), workers=2)
    model.write(Path(arguments["path"]))
    said, lines.said = lines.said, []
    with suppress(GivenUpError):
        fit(progress=Progress(follower=give_up), workers=2, epochs=10_000)
    return {"said": said, "left": [pid for pid in workers_said(lines.said) if not gone(pid)]}


def give_up(epoch: int, _: float) -> None:
    raise GivenUpError(epoch)


def workers_said(said: list[str], worker: str = r"\d+") -> list[int]:
    """The processes of workers that log lines name."""
    found = [re.match(rf"worker {worker} of \d+: process (\d+)", line) for line in said]
    return [int(one[1]) for one in found if one]


def gone(pid: int, within: float = 30.0) -> bool:
    until = time.monotonic() + within
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.1)
    return not psutil.pid_exists(pid)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
