"""A fit to share, and one who kills its workers."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlops_assets.checkpoints import Progress
from mlops_assets.trainers import trainer_named
from mlops_assets.trainers.networks.network import Network

NET = {"hidden": [16, 8], "epochs": 40, "patience": 40, "learning_rate": 0.01, "batch_size": 64}
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
            found = [re.match(rf"worker {worker} of \d+: process (\d+)", line) for line in said()]
            struck.extend(int(one[1]) for one in found if one)
            os.kill(struck[-1], signal.SIGKILL)

    return Progress(path / "a.checkpoint", {"rows": "these"}, seconds=None, rounds=5, follower=follow)
