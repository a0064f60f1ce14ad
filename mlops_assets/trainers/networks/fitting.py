"""How every net here is fitted: batches in a seeded order, until the validation rows no longer improve.

A framework brings only what differs, a `Learner`: one pass of gradient steps, the loss, the weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mlops_assets.checkpoints import NO_CHECKPOINTS, Kept, Progress
from mlops_assets.trainers import Trainer, TrainerParameterError
from mlops_assets.trainers.networks.network import Layer, Network
from mlops_assets.trainers.networks.preparation import Image, ImagePreparation, Preparation
from resources.hardware import CPU, Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers.graphs.graph import Graph

DEFAULTS: Mapping[str, Any] = {
    "hidden": (64, 32),
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "batch_size": 256,
    "epochs": 50,
    "patience": 5,
}
IMAGE_DEFAULTS: Mapping[str, Any] = {**DEFAULTS, "hidden": (64,), "batch_size": 64, "image": (), "channels": (16, 32)}
LISTS = ("hidden", "channels", "image")
SIZES = (*LISTS, "batch_size", "epochs", "patience")
MOST_CLASSES = 10_000  # each has its own weights: a label with an id for each row is no class


class Learner(Protocol):
    """A net in a framework's own tensors, with its optimizer."""

    def epoch(self, x: np.ndarray, y: np.ndarray) -> None:
        """One pass over the rows in their order, a gradient step (AdamW) for each batch."""
        ...

    def loss(self, x: np.ndarray, y: np.ndarray) -> float:
        """The mean loss: log loss (of several classes, cross entropy), or squared error."""
        ...

    def layers(self) -> tuple[Layer, ...]:
        """A copy of the weights as they are now."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """A copy of the weights and of all that the optimizer remembers, by names of the framework's own."""
        ...

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Be as when `state` was taken of a net of the same layers."""
        ...


@dataclass(frozen=True)
class Settings:
    """The parameters of a net, each checked."""

    hidden: tuple[int, ...]
    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int
    image: Image | None = None
    channels: tuple[int, ...] = ()

    @classmethod
    def of(cls, trainer: str, given: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> Settings:
        for name in given:
            if name not in defaults:
                raise TrainerParameterError.of(trainer, name, "is not known", f"It knows: {', '.join(defaults)}.")
        told = {**defaults, **given}
        for name in [name for name in SIZES if name in told]:
            value = told[name] if name in LISTS else [told[name]]
            if not isinstance(value, list | tuple) or not all(isinstance(one, int) and one > 0 for one in value):
                raise TrainerParameterError.of(trainer, name, f"is {told[name]!r}", "Give whole numbers above 0.")
        told |= {name: tuple(told[name]) for name in LISTS if name in told}
        if "image" in told:
            told["image"] = _image(trainer, told["image"], len(told["channels"]))
        return cls(**told)


def _image(trainer: str, given: tuple[int, ...], halvings: int) -> Image:
    """Height, width and channels, one where none are told; large enough to be halved by each convolution."""
    if len(given) not in (2, 3):
        fix = "Give height and width, and the channels of a pixel if there are several."
        raise TrainerParameterError.of(trainer, "image", f"is {given!r}", fix)
    height, width, channels = (*given, 1)[:3]
    if min(height, width) >> halvings == 0:
        problem = f"{given!r} is too small to be halved {halvings} times"
        raise TrainerParameterError.of(trainer, "image", problem, "Give fewer `channels`.")
    return height, width, channels


@dataclass(frozen=True)
class Problem:
    """A net as it was drawn, the prepared rows (n, inputs) and their targets (n, 1), and how it is fitted to them."""

    network: Network
    x: np.ndarray
    y: np.ndarray
    valid: tuple[np.ndarray, np.ndarray] | None
    settings: Settings
    seed: int
    own: Mapping[str, Any] = field(default_factory=dict)  # what the trainer was given of its `own` parameters
    target: tuple[float, float] = (0.0, 1.0)  # what a target as declared is shifted and divided by


class NetTrainer(Trainer):
    """Fits a net of dense layers. Columns are scaled and missing values marked by the net itself.

    It reads a category's index as a number, so give it numeric inputs, such as an embedding.
    `hidden` are the layers' sizes, `patience` the epochs without improvement after which fitting stops. Of images,
    whose pixels come line by line, `channels` are the sizes of the convolutions before those layers.
    """

    defaults: ClassVar[Mapping[str, Any]] = DEFAULTS
    own: ClassVar[tuple[str, ...]] = ()  # parameters that are no `Settings` of a net

    @abstractmethod
    def _learner(self, network: Network, settings: Settings, device: Device) -> Learner: ...

    def _weights(self, problem: Problem, progress: Progress, device: Device) -> tuple[tuple[Layer, ...], int]:
        """The layers that a problem comes to, and after how many epochs."""
        return fitted(self._learner(problem.network, problem.settings, device), problem, progress)

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
        given = {**self.params, **params}
        own = {name: given.pop(name) for name in self.own if name in given}
        settings = Settings.of(type(self).__name__, given, self.defaults)
        self._refuse_other_columns(x, settings)
        prepared, shift, scale = self._scales(x, y, settings)
        outputs = self._classes(y, y_valid) if self.task == "multiclass" else 1
        drawn = Network.drawn(self.task, prepared, settings.hidden, seed, settings.channels, outputs)
        valid = None if x_valid is None or y_valid is None else (prepared(x_valid), _scaled(y_valid, shift, scale))
        problem = Problem(drawn, prepared(x), _scaled(y, shift, scale), valid, settings, seed, own, (shift, scale))
        layers, epochs = self._weights(problem, progress, device)
        return replace(drawn, layers=_in_units(layers, shift, scale), epochs=epochs)

    def _scales(self, x: np.ndarray, y: np.ndarray, settings: Settings) -> tuple[Preparation, float, float]:
        """How a row becomes the net's input, and what a target is shifted and divided by."""
        prepared = ImagePreparation.of(x, settings.image) if settings.image else Preparation.fit(x)
        return (prepared, *_target(y, self.task))

    def _classes(self, y: np.ndarray, y_valid: np.ndarray | None) -> int:
        """How many there are. One that only validation rows hold has its place too; whatever it says there is wrong."""
        highest = max(int(rows.max()) for rows in (y, y_valid) if rows is not None)
        if highest >= MOST_CLASSES:
            raise TrainerParameterError.of(
                type(self).__name__,
                "label",
                f"goes up to class {highest}",
                f"Number at most {MOST_CLASSES} classes from 0.",
            )
        return highest + 1

    def _refuse_other_columns(self, x: np.ndarray, settings: Settings) -> None:
        if settings.image and x.shape[1] != prod(settings.image):
            raise TrainerParameterError.of(
                type(self).__name__,
                "image",
                f"is {settings.image}, {prod(settings.image)} numbers, and the rows have {x.shape[1]}",
                "State the image's own size, or give the model its pixels alone.",
            )

    def write(self, model: Network, directory: Path) -> None:
        model.write(directory)

    def graph(self, model: Network) -> Graph:
        return model.graph()

    def learned(self, model: Network) -> dict[str, Any]:
        return {"epochs": model.epochs}


def fitted(learner: Learner, problem: Problem, progress: Progress) -> tuple[tuple[Layer, ...], int]:
    """The best weights and after how many epochs they were reached; without validation rows, the last."""
    import numpy as np

    x, y, valid, settings = problem.x, problem.y, problem.valid, problem.settings
    random = np.random.default_rng(problem.seed)
    best, best_loss, best_epoch, done = learner.layers(), float("inf"), 0, 0
    if kept := progress.kept():
        best, best_loss, best_epoch, done = _restored(learner, kept)
    for _ in range(done):  # the order of each epoch follows from those before
        random.permutation(len(x))
    for epoch in range(done + 1, settings.epochs + 1):
        order = random.permutation(len(x))
        learner.epoch(x[order], y[order])
        loss = learner.loss(*valid) if valid else -float(epoch)
        if valid:
            progress.scored(epoch - 1, loss)
        if loss < best_loss:
            best, best_loss, best_epoch = (learner.layers() if valid else best), loss, epoch
        elif epoch - best_epoch >= settings.patience:
            break
        progress.reached(epoch, partial(_as_bytes, learner, best), loss=best_loss, epoch=best_epoch)
    return (best if valid else learner.layers()), max(best_epoch, 1)


def _as_bytes(learner: Learner, best: tuple[Layer, ...]) -> bytes:
    """What the learner knows, and the best weights so far, as safetensors."""
    from safetensors.numpy import save

    tensors = {f"learner.{name}": value for name, value in learner.state().items()}
    for place, layer in enumerate(best):
        tensors |= {f"best.{place}.weight": layer.weight, f"best.{place}.bias": layer.bias}
    written: bytes = save({name: value.copy(order="C") for name, value in tensors.items()})
    return written


def _restored(learner: Learner, kept: Kept) -> tuple[tuple[Layer, ...], float, int, int]:
    from safetensors.numpy import load

    tensors: dict[str, np.ndarray] = load(kept.model)
    learner.restore({name[8:]: value for name, value in tensors.items() if name.startswith("learner.")})
    places = range(sum(name.startswith("best.") for name in tensors) // 2)
    best = tuple(Layer(tensors[f"best.{place}.weight"], tensors[f"best.{place}.bias"]) for place in places)
    return best, kept.notes["loss"], kept.notes["epoch"], kept.rounds


def _target(y: np.ndarray, task: str) -> tuple[float, float]:
    """Values are learned in standard deviations from their mean, whatever their unit; classes as they are."""
    if task != "regression":
        return 0.0, 1.0
    return float(y.mean()), float(y.std()) or 1.0


def _scaled(y: np.ndarray, shift: float, scale: float) -> np.ndarray:
    scaled: np.ndarray = ((y - shift) / scale).astype("float32").reshape(-1, 1)
    return scaled


def _in_units(layers: tuple[Layer, ...], shift: float, scale: float) -> tuple[Layer, ...]:
    """The last layer answers in the target's own unit."""
    import numpy as np

    *hidden, last = layers
    told = Layer((last.weight * scale).astype(np.float32), (last.bias * scale + shift).astype(np.float32))
    return (*hidden, told)
