"""A net of dense layers fitted by Keras 3, on torch or on TensorFlow; saved as safetensors and plain JSON.

Not as a Keras archive: its configuration names the classes and functions to build, and several ways around
its safe mode were found. Keras rebuilds the net from our own list of sizes, and gets its weights as numbers.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers.networks.fitting import Learner, NetTrainer, Problem, Settings
from mlops_assets.trainers.networks.network import Layer, Network
from resources.hardware import Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.checkpoints import Progress
    from mlops_assets.trainers import Predictor


class _Keras(NetTrainer):
    """CUDA is by PyTorch, as Keras's backend; Apple's GPU is better used by MLX."""

    accelerators = ("cuda", "cpu")

    def _learner(self, network: Network, settings: Settings, device: Device) -> Learner:  # noqa: ARG002 - see _weights
        return _Learner(network, settings)

    def _weights(self, problem: Problem, progress: Progress, device: Device) -> tuple[tuple[Layer, ...], int]:
        """Keras computes on whatever GPU it finds, unless it is told where."""
        with _keras().device(f"gpu:{device.index}" if device.kind == "cuda" else "cpu"):
            return super()._weights(problem, progress, device)


class KerasClassifier(_Keras):
    """Predicts the probability of the positive class."""

    task = "classification"


class KerasRegressor(_Keras):
    """Predicts a value, by squared error."""

    task = "regression"


class _Learner:
    def __init__(self, network: Network, settings: Settings) -> None:
        keras = _keras()
        classifies = network.task == "classification"
        self.model, self.batch = _model(network), settings.batch_size
        self.model.compile(
            optimizer=keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay),
            loss=keras.losses.BinaryCrossentropy(from_logits=True) if classifies else "mse",
        )

    def epoch(self, x: np.ndarray, y: np.ndarray) -> None:
        self.model.fit(x, y, batch_size=self.batch, shuffle=False, verbose=0)

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        return float(self.model.evaluate(x, y, batch_size=max(self.batch, 4096), verbose=0))

    def layers(self) -> tuple[Layer, ...]:
        weights = self.model.get_weights()
        return tuple(
            Layer(kernel.T.copy(), bias.copy()) for kernel, bias in zip(weights[::2], weights[1::2], strict=True)
        )

    def state(self) -> dict[str, np.ndarray]:
        return {str(place): _keras().ops.convert_to_numpy(one) for place, one in enumerate(self._variables())}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        for place, variable in enumerate(self._variables()):
            variable.assign(state[str(place)])

    def _variables(self) -> list[Any]:
        """The weights and what the optimizer remembers, which it makes room for at its first step."""
        self.model.optimizer.build(self.model.trainable_variables)
        return [*self.model.variables, *self.model.optimizer.variables]


def load(directory: Path) -> Predictor:
    keras = _keras()
    network = Network.read(directory)
    with keras.device("cpu"):
        model = _model(network)

    def forward(prepared: np.ndarray) -> np.ndarray:
        with keras.device("cpu"):
            answer: np.ndarray = keras.ops.convert_to_numpy(model(prepared, training=False))
            return answer

    return network.predictor(forward)


def _keras() -> Any:
    """Keras, on the backend that is installed: it would choose TensorFlow without looking."""
    if not os.environ.get("KERAS_BACKEND"):
        os.environ["KERAS_BACKEND"] = "torch" if find_spec("torch") else "tensorflow"
    import keras

    return keras


def _model(network: Network) -> Any:
    """The layers as a Keras model; Keras holds a kernel the other way round."""
    keras = _keras()
    *hidden, _ = network.layers
    parts = [keras.layers.Dense(len(layer.bias), activation="relu") for layer in hidden]
    model = keras.Sequential([keras.Input((2 * network.columns,)), *parts, keras.layers.Dense(1)])
    model.set_weights([values for layer in network.layers for values in (layer.weight.T, layer.bias)])
    return model
