"""PyTorch against MLX on this machine: the same net, the same rows in the same order, fitted and asked.

`ours` is MLX, the peer PyTorch: which of them a Mac should prefer is measured on a Mac (`accelerator="mlx"` against
"mps"); on Linux both compute on the CPU. What is timed was shown to be equal: of one file of weights both say the same,
and both fits, from the same weights over the same batches, predict as well.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Figure, Measurement, in_turn, require_equal, seconds
from mlops_assets.checkpoints import NO_CHECKPOINTS
from mlops_assets.trainers import Trainer, native_predictor, threads, trainer_named
from resources.hardware import this_machine

if TYPE_CHECKING:
    import numpy as np

ROUNDS = 3
SINGLE = 300  # rows asked for one by one
TOLERANCE = 1e-3
AS_GOOD = 0.02  # shares of rows predicted right may differ by so much: sums are rounded otherwise
DENSE = {"hidden": [128, 64], "epochs": 4, "batch_size": 256}
IMAGES = {"image": [8, 8], "channels": [16, 32], "hidden": [64], "epochs": 4, "batch_size": 64}


def measure() -> Measurement:
    figures = [*_of("dense", "Classifier", DENSE, *_table()), *_of("images", "ImageClassifier", IMAGES, *_digits())]
    machine = this_machine()
    told = f"on {machine.system} {machine.arch}, {machine.chip}, {threads()} threads, {', '.join(machine.devices)}"
    return Measurement(figures, [told])


def _of(name: str, kind: str, params: dict[str, Any], x: np.ndarray, y: np.ndarray) -> list[Figure]:
    """Seconds of a fit, of predicting all rows, and of predicting one."""
    trainers = [trainer_named(f"{framework}{kind}", **params) for framework in ("MLX", "Torch")]
    with TemporaryDirectory(prefix="mlops-benchmark-") as directory:
        fitted = [_fitted(trainer, x, y) for trainer in trainers]
        trainers[0].write(fitted[0], Path(directory))
        predictors = [native_predictor(trainer.framework, Path(directory)) for trainer in trainers]
        ours, peer = (predict(x) for predict in predictors)
        _require_alike(name, ours, peer)
        _require_as_good(name, trainers, fitted, x, y)
        fits = [partial(_fitted, trainer, x, y) for trainer in trainers]
        bulk = [partial(predict, x) for predict in predictors]
        single = [partial(_one_by_one, predict, x) for predict in predictors]
        figures = []
        for what, sides, unit in (("fit", fits, "s"), ("predict_all", bulk, "s"), ("predict_one", single, "s")):
            took = in_turn(partial(seconds, sides[0]), partial(seconds, sides[1]), ROUNDS)
            figures.append(Figure(f"networks.{name}.{what}", *took, f"PyTorch, {_of_what(what, x, params)}", unit))
        return figures


def _of_what(what: str, x: np.ndarray, params: dict[str, Any]) -> str:
    if what == "predict_one":
        return f"{SINGLE} rows one by one"
    return f"{len(x)} rows" + (f", {params['epochs']} epochs" if what == "fit" else "")


def _fitted(trainer: Trainer, x: np.ndarray, y: np.ndarray) -> Any:
    return trainer.fit(x, y, None, None, {}, 3, NO_CHECKPOINTS)


def _require_alike(name: str, ours: np.ndarray, peer: np.ndarray) -> None:
    """Of the same weights; of classes all but those few that lie on the edge between two."""
    apart = float((abs(ours - peer) > TOLERANCE).mean())
    require_equal(f"what the {name} nets say of the same weights", apart <= TOLERANCE or f"{apart:.1%} apart", True)


def _require_as_good(name: str, trainers: list[Trainer], fitted: list[Any], x: np.ndarray, y: np.ndarray) -> None:
    right = []
    for trainer, model in zip(trainers, fitted, strict=True):
        with TemporaryDirectory(prefix="mlops-benchmark-") as directory:
            trainer.write(model, Path(directory))
            right.append(float((native_predictor(trainer.framework, Path(directory))(x).round() == y).mean()))
    require_equal(f"how the {name} nets predict", abs(right[0] - right[1]) <= AS_GOOD or right, True)


def _one_by_one(predict: Any, x: np.ndarray) -> None:
    for at in range(SINGLE):
        predict(x[at : at + 1])


def _table() -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    random = np.random.default_rng(5)
    x = random.normal(size=(40_000, 30)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] + random.normal(size=len(x)) > 0).astype(np.float64)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's real images of digits."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.data.astype(np.float32), digits.target.astype(np.float64)
