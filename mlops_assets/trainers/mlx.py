"""A net fitted by MLX, Apple's array library (its Linux build uses the CPU); saved as safetensors.

It is fitted on Apple's GPU, or on the CPU if that is chosen; it answers on the CPU, where one row costs no dispatch
and products are in full float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers.networks import in_mlx
from mlops_assets.trainers.networks.fitting import IMAGE_DEFAULTS, Learner, NetTrainer, Problem, Settings
from mlops_assets.trainers.networks.network import Layer, Network
from resources.hardware import Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.checkpoints import Progress
    from mlops_assets.trainers import Predictor


class _MLX(NetTrainer):
    accelerators = ("mlx", "cpu")

    def _learner(self, network: Network, settings: Settings, device: Device) -> Learner:  # noqa: ARG002 - see _weights
        return _Learner(network, settings)

    def _weights(self, problem: Problem, progress: Progress, device: Device) -> tuple[tuple[Layer, ...], int]:
        """MLX's default is the GPU on a Mac, also for who asked for the CPU."""
        import mlx.core as mx

        with mx.stream(mx.cpu if device.kind == "cpu" else mx.default_device()):
            return super()._weights(problem, progress, device)


class MLXClassifier(_MLX):
    """Predicts the probability of the positive class."""

    task = "classification"


class MLXRegressor(_MLX):
    """Predicts a value, by squared error."""

    task = "regression"


class MLXImageClassifier(_MLX):
    """Predicts the class of an image, from its numbers line by line; `image` is its height, width and channels."""

    task = "multiclass"
    defaults = IMAGE_DEFAULTS


class _Learner:
    def __init__(self, network: Network, settings: Settings) -> None:
        import mlx.core as mx
        import mlx.optimizers as optim

        self.weights, self.batch = {"layers": in_mlx.arrays(network)}, settings.batch_size
        criterion, image = in_mlx.criterion(network.task), network.preparation.image
        self.criterion: Any = lambda weights, x, y: criterion(in_mlx.forward(weights["layers"], x, image), y)
        self.gradient: Any = mx.value_and_grad(self.criterion)
        self.optimizer = optim.AdamW(
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            bias_correction=True,  # as torch's: without it, MLX's default, the first steps are several times as long
        )

    def epoch(self, x: np.ndarray, y: np.ndarray) -> None:
        import mlx.core as mx

        for start in range(0, len(x), self.batch):
            rows, wanted = mx.array(x[start : start + self.batch]), mx.array(y[start : start + self.batch])
            _, gradients = self.gradient(self.weights, rows, wanted)
            self.weights = self.optimizer.apply_gradients(gradients, self.weights)
            mx.eval(self.weights, self.optimizer.state)

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        import mlx.core as mx

        return float(self.criterion(self.weights, mx.array(x), mx.array(y)).item())

    def layers(self) -> tuple[Layer, ...]:
        return in_mlx.layers(self.weights["layers"])

    def state(self) -> dict[str, np.ndarray]:
        import numpy as np
        from mlx.utils import tree_flatten

        return {
            name: np.array(value)
            for name, value in tree_flatten({"weights": self.weights, "optimizer": self.optimizer.state})
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        import mlx.core as mx
        from mlx.utils import tree_unflatten

        tree = tree_unflatten([(name, mx.array(value)) for name, value in state.items()])
        self.weights, self.optimizer.state = tree["weights"], tree["optimizer"]
        mx.eval(self.weights, self.optimizer.state)


def load(directory: Path) -> Predictor:
    import mlx.core as mx
    import numpy as np

    network = Network.read(directory)
    with mx.stream(mx.cpu):
        weights = in_mlx.arrays(network)
        mx.eval(weights)

    def forward(prepared: np.ndarray) -> np.ndarray:
        with mx.stream(mx.cpu):
            return np.array(in_mlx.forward(weights, mx.array(prepared), network.preparation.image))

    return network.predictor(forward)
