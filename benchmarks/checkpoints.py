"""What checkpoints cost a training of about a minute, and what they save one that is killed near its end.

The cost is told by the training itself: the time it spent on its checkpoints, one each ten seconds (the default is
one each ten minutes), against all of its time; a busy machine slows both. Seeding the draws of each round anew,
without which no fit could be continued, is measured against XGBoost's own loop, in seconds of CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figure, Measurement, in_turn, require_equal, seconds

if TYPE_CHECKING:
    import numpy as np

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.record import file_hashes
from mlops_assets.trainers import Trainer, threads, trainer_named

ROWS, COLUMNS = 80_000, 30
EVERY = 10.0  # seconds
KILLED_AT = 0.8  # of the rounds
SAMPLED = {"subsample": 0.8, "colsample_bytree": 0.8}
TRAINERS: dict[str, tuple[Trainer, int]] = {  # and how many rounds or epochs it takes
    "xgboost": (trainer_named("XGBoostClassifier", n_estimators=600, max_depth=8, learning_rate=0.05, **SAMPLED), 600),
    "lightgbm": (
        trainer_named(
            "LightGBMClassifier", n_estimators=600, num_leaves=127, learning_rate=0.05, subsample=0.8, subsample_freq=1
        ),
        600,
    ),
    "torch": (trainer_named("TorchClassifier", hidden=[256, 128], epochs=20), 20),
}


class KilledError(Exception):
    """The fit ended where its process would have."""


class Watched(Progress):
    """Says how long its checkpoints took, and may end the fit after a round."""

    spent = 0.0
    written = 0
    last: int | None = None

    def reached(self, rounds: int, model: Callable[[], bytes], **notes: Any) -> None:
        due = self._due(rounds)
        self.spent += seconds(lambda: super(Watched, self).reached(rounds, model, **notes))
        self.written += due
        if rounds == self.last:
            raise KilledError


def measure() -> Measurement:
    x, y = _rows()
    figures, told = [], []
    for name, (trainer, rounds) in TRAINERS.items():
        with TemporaryDirectory(prefix="mlops-benchmark-") as directory:
            found, line = _of(name, trainer, rounds, x, y, Path(directory))
            figures += found
            told.append(line)
    return Measurement([*figures, _seeding(x, y)], told)


def _of(
    name: str, trainer: Trainer, rounds: int, x: np.ndarray, y: np.ndarray, directory: Path
) -> tuple[list[Figure], str]:
    watched = Watched(directory / "whole", {}, EVERY)
    started, clock = time.perf_counter(), time.process_time()
    whole = trainer.fit(x, y, None, None, {}, 3, watched)
    taken, computed = time.perf_counter() - started, time.process_time() - clock
    killed = Watched(directory / "killed", {}, None, round(KILLED_AT * rounds))
    killed.last = killed.rounds
    try:
        trainer.fit(x, y, None, None, {}, 3, killed)
    except KilledError:
        clock = time.process_time()
        continued = trainer.fit(x, y, None, None, {}, 3, Progress(directory / "killed"))
        rest = time.process_time() - clock
    require_equal(
        f"the model of {name}", _files(trainer, continued, directory / "a"), _files(trainer, whole, directory / "b")
    )
    size = (directory / "killed").stat().st_size / 2**20
    each = watched.spent / max(watched.written, 1)
    line = f"{name}: {watched.written} checkpoints in {taken:.1f} s, {each:.2f} s each, the last {size:.1f} MB"
    line += f"; one each ten minutes takes {each / 600:.2%} of the time"
    return [
        Figure(
            f"checkpoints.{name}.cost", taken, taken - watched.spent, "the same fit less its checkpoints", target=1.02
        ),
        Figure(f"checkpoints.{name}.continued", rest, computed, "starting over", "s CPU", target=0.5),
    ], line


def _seeding(x: np.ndarray, y: np.ndarray) -> Figure:
    """Our loop against `xgb.train`, which draws columns and rows by a state that no file holds."""
    import xgboost as xgb

    trainer = trainer_named("XGBoostClassifier", n_estimators=100, max_depth=8, **SAMPLED)
    settings = {"tree_method": "hist", "objective": "binary:logistic", "max_depth": 8, "learning_rate": 0.1, **SAMPLED}

    def peer() -> None:
        rows = xgb.QuantileDMatrix(x, label=y, nthread=threads())
        xgb.train({**settings, "seed": 3, "nthread": threads()}, rows, num_boost_round=100)

    ours, theirs = in_turn(
        lambda: _cpu(lambda: trainer.fit(x, y, None, None, {}, 3, NO_CHECKPOINTS)), lambda: _cpu(peer), 3
    )
    return Figure("checkpoints.xgboost.seeding", ours, theirs, "xgb.train", "s CPU", target=1.05)


def _cpu(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _files(trainer: Trainer, model: Any, directory: Path) -> dict[str, str]:
    directory.mkdir()
    trainer.write(model, directory)
    return file_hashes(directory)


def _rows() -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    y = x[:, 0] + x[:, 1] * x[:, 2] + random.normal(scale=2.0, size=ROWS) > 0
    x[random.random(x.shape) < 0.05] = np.nan
    return x, y.astype(np.float64)
