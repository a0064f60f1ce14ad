"""One fit by two workers of one thread each, processes and Ray Train's on a local cluster, against one worker alone.

Timed are whole epochs, from the first that was heard of to the last; what it takes until then (processes that begin,
imports, Ray's own) is told beside it, since a short training never gets it back. What is timed was shown to be equal:
the loss after the third epoch, to a ten thousandth. After thousands of steps it no longer is: the order of additions,
between one thread and two of one worker as between workers, is an error that grows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from benchmarks.harness import Figure, Measurement, fresh_home, require_equal
from mlops_assets.checkpoints import Progress
from mlops_assets.trainers import trainer_named

if TYPE_CHECKING:
    import numpy as np

ROUNDS = 3
EQUAL_AFTER, RELATIVE = 3, 1e-4
NETS: dict[str, dict[str, Any]] = {
    "large": {"rows": 16_384, "hidden": [1024, 512], "batch_size": 2048, "epochs": 6},
    "small": {"rows": 16_384, "hidden": [64, 32], "batch_size": 256, "epochs": 30},
}
TWICE = 1 / 1.6  # of the seconds: two workers at least 1.6 times as fast


@dataclass(frozen=True)
class Took:
    """Seconds until the first epoch had ended, seconds of each epoch after it, and an early loss."""

    begin: float
    epoch: float
    loss: float


def measure() -> Measurement:
    figures, told = [], []
    for name, net in NETS.items():
        sides: dict[str, list[Took]] = {"alone": [], "threads": [], "processes": [], "ray": []}
        with fresh_home():
            for _ in range(ROUNDS):
                sides["alone"].append(_timed_here(net, workers=1, threads=1))
                sides["threads"].append(_timed_here(net, workers=1, threads=2))
                sides["processes"].append(_timed_here(net, workers=2, threads=2))
            sides["ray"] = _timed_on_ray(net)
        for side, took in sides.items():
            _require_the_same_loss(f"{name}, {side}", took[-1], sides["alone"][-1])
        found = {side: median(one.epoch for one in took) for side, took in sides.items()}
        peer = "one worker, one thread"
        for side in ("processes", "ray"):
            target = TWICE if name == "large" else None
            figures.append(
                Figure(f"distributed.{name}.{side}", found[side], found["alone"], peer, "s an epoch", target)
            )
        figures.append(Figure(f"distributed.{name}.threads", found["threads"], found["alone"], peer, "s an epoch"))
        begin = ", ".join(f"{side} {median(one.begin for one in took):.1f} s" for side, took in sides.items())
        rates = ", ".join(f"{side} {net['rows'] / seconds:,.0f}" for side, seconds in found.items())
        told.append(f"{name}: rows/s {rates}; until the first epoch had ended: {begin}")
    return Measurement(figures, told)


def timed(net: Mapping[str, Any], workers: int) -> Took:
    """A fit, as who follows it sees it."""
    params = {key: value for key, value in net.items() if key != "rows"}
    heard: list[tuple[float, float]] = []
    progress = Progress(follower=lambda _, score: heard.append((time.perf_counter(), score)))
    trainer = trainer_named("TorchClassifier", **params, patience=net["epochs"], workers=workers)
    x, y = _rows(net["rows"])
    began = time.perf_counter()
    trainer.fit(x, y, x[:256], y[:256], {}, 3, progress)
    first, last = heard[0], heard[-1]
    return Took(first[0] - began, (last[0] - first[0]) / (len(heard) - 1), heard[EQUAL_AFTER - 1][1])


def _timed_here(net: Mapping[str, Any], workers: int, threads: int) -> Took:
    with patch.dict(os.environ, {"OMP_NUM_THREADS": str(threads)}):
        return timed(net, workers)


def _timed_on_ray(net: Mapping[str, Any]) -> list[Took]:
    from resources.compute import Work
    from resources.compute.ray import cluster

    with cluster("", Work("benchmarks.distributed:timed", {})):
        import ray

        task = ray.remote(num_cpus=2, runtime_env={"env_vars": {"OMP_NUM_THREADS": "2"}})(timed)
        return [ray.get(task.remote(net, 2)) for _ in range(ROUNDS)]


def _require_the_same_loss(what: str, ours: Took, peer: Took) -> None:
    apart = abs(ours.loss - peer.loss) / peer.loss
    require_equal(f"the loss of {what}", apart <= RELATIVE or f"{apart:.1e} apart", True)


def _rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    random = np.random.default_rng(5)
    x = random.normal(size=(n, 30)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] + random.normal(size=n) > 0).astype(np.float64)
