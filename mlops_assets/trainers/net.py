"""The same net wherever it is fitted: MLX on Apple Silicon, PyTorch on CUDA and everywhere else.

Who declares one of these names no framework: the device that is found decides, and the file that is saved is the same
of either. Where only one of the two is installed, that one fits it and loads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.trainers import Trainer, native_predictor, trainer_named
from resources.hardware import CPU, Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.graphs.graph import Graph
    from mlops_assets.trainers.networks.network import Network


class _Net(Trainer):
    """Parameters are those of the net, which are the same in both frameworks; see `NetTrainer`."""

    accelerators = ("cuda", "mlx", "mps", "cpu")

    def by(self, device: Device) -> Trainer:
        """Who fits it there."""
        mlx = device.kind == "mlx" or not find_spec("torch")
        return trainer_named(type(self).__name__.replace("Net", "MLX" if mlx else "Torch"), **self.params)

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_valid: np.ndarray | None,
        y_valid: np.ndarray | None,
        params: Mapping[str, Any],
        seed: int,
        progress: Progress = NO_CHECKPOINTS,
        device: Device = CPU,
    ) -> Network:
        fitted: Network = self.by(device).fit(x, y, x_valid, y_valid, params, seed, progress, device)
        return fitted

    def write(self, model: Network, directory: Path) -> None:
        model.write(directory)

    def graph(self, model: Network) -> Graph:
        return model.graph()

    def learned(self, model: Network) -> dict[str, Any]:
        return {"epochs": model.epochs}


class NetClassifier(_Net):
    """Predicts the probability of the positive class."""

    task = "classification"


class NetRegressor(_Net):
    """Predicts a value, by squared error."""

    task = "regression"


class NetImageClassifier(_Net):
    """Predicts the class of an image, from its numbers line by line; `image` is its height, width and channels."""

    task = "multiclass"


def load(directory: Path) -> Predictor:
    return native_predictor("torch" if find_spec("torch") else "mlx", directory)
