"""How a model is fitted, saved and loaded, one file per framework; all keep the contract below.

A trainer is a declared value (a class and its parameters); the framework is imported only when it
fits, saves or loads. Model files are in safe formats only: loading one never runs code from it, so
a pickle is refused wherever it turns up. A new framework is a new file here, with its trainers and
a function `load(directory) -> Predictor`; nothing else needs to know it.

A model is saved twice where that is exact: in its framework's own format, and as `serving.onnx`, which
ONNX Runtime answers from in microseconds and without the framework (see `graphs`). What folders hold here
is shared by several frameworks.
"""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from resources.hardware import CPU, NEEDS, Device, Kind, Machine, choose

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers.federated import (
        FederatedClassifier as FederatedClassifier,
    )
    from mlops_assets.trainers.federated import (
        FederatedRegressor as FederatedRegressor,
    )
    from mlops_assets.trainers.graphs.graph import Graph
    from mlops_assets.trainers.keras import (
        KerasClassifier as KerasClassifier,
    )
    from mlops_assets.trainers.keras import (
        KerasRegressor as KerasRegressor,
    )
    from mlops_assets.trainers.lightgbm import (
        LightGBMClassifier as LightGBMClassifier,
    )
    from mlops_assets.trainers.lightgbm import (
        LightGBMRegressor as LightGBMRegressor,
    )
    from mlops_assets.trainers.mlx import (
        MLXClassifier as MLXClassifier,
    )
    from mlops_assets.trainers.mlx import (
        MLXImageClassifier as MLXImageClassifier,
    )
    from mlops_assets.trainers.mlx import (
        MLXRegressor as MLXRegressor,
    )
    from mlops_assets.trainers.net import (
        NetClassifier as NetClassifier,
    )
    from mlops_assets.trainers.net import (
        NetImageClassifier as NetImageClassifier,
    )
    from mlops_assets.trainers.net import (
        NetRegressor as NetRegressor,
    )
    from mlops_assets.trainers.onnx import (
        OnnxClassifier as OnnxClassifier,
    )
    from mlops_assets.trainers.onnx import (
        OnnxRegressor as OnnxRegressor,
    )
    from mlops_assets.trainers.sklearn import (
        SklearnClassifier as SklearnClassifier,
    )
    from mlops_assets.trainers.sklearn import (
        SklearnRegressor as SklearnRegressor,
    )
    from mlops_assets.trainers.torch import (
        TorchClassifier as TorchClassifier,
    )
    from mlops_assets.trainers.torch import (
        TorchImageClassifier as TorchImageClassifier,
    )
    from mlops_assets.trainers.torch import (
        TorchRegressor as TorchRegressor,
    )
    from mlops_assets.trainers.xgboost import (
        XGBoostClassifier as XGBoostClassifier,
    )
    from mlops_assets.trainers.xgboost import (
        XGBoostRegressor as XGBoostRegressor,
    )

    Predictor = Callable[[np.ndarray], np.ndarray]
    """From float32 of shape (n, columns), NaN where missing, to float64 of shape (n,): the
    probability of the positive class, the class of several, or the value. Safe to call from several threads."""

Task = Literal["classification", "multiclass", "regression"]

logger = logging.getLogger(__name__)

SERVING_GRAPH = "serving.onnx"

# Threads of a tree library that wait by spinning starve each other as soon as two trainings share a machine:
# the same fit took minutes beside another one, and seconds alone. Read by libgomp when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Classes:
    """The predictor of one class among several; `shares` says how likely it takes each to be, shape (n, classes)."""

    shares: Callable[[np.ndarray], np.ndarray]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        chosen: np.ndarray = self.shares(x).argmax(axis=1).astype("float64")
        return chosen


@dataclass(frozen=True)
class Place:
    """Which rows a fit is of: those of a training set of `model` from the event time `since` to `until`, both included.

    `schema` is how a row is encoded, as `InputSchema.to_json` says it; times are ISO 8601 with a zone.
    """

    model: str
    schema: Mapping[str, Any]
    key: str
    label: str
    since: str
    until: str


class UnknownTrainerError(LookupError):
    """A trainer or a framework was named that no file here provides."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> Self:
        return cls(
            f"There is no {kind} {name!r} (known: {', '.join(known)}). "
            "Name one of these, or add a file to mlops_assets/trainers/."
        )


class TrainerParameterError(ValueError):
    """A trainer was given a parameter that it does not have, or that cannot be written down as JSON."""

    @classmethod
    def of(cls, trainer: str, name: str, problem: str, fix: str) -> Self:
        return cls(f"{trainer}: parameter {name!r} {problem}. {fix}")


class UnsafeModelFileError(ValueError):
    """A model file is not in the format that its framework's loader trusts."""

    @classmethod
    def of(cls, path: Path, wanted: str, found: str) -> Self:
        return cls(
            f"Model file {path} is refused: wanted {wanted}, found {found}. Train the model again; never rename files."
        )


@dataclass(frozen=True, init=False, repr=False)
class Trainer(ABC):
    """Fits one kind of model. Parameters are the framework's own names, given as keywords.

    Two trainers of one class with the same parameters are equal, and hash alike.
    """

    task: ClassVar[Task]
    accelerators: ClassVar[tuple[Kind, ...]] = ("cpu",)  # what it can be fitted on, the best first
    needs: ClassVar[Mapping[Kind, str]] = NEEDS  # the package that computes on each of them
    scores: ClassVar[bool] = True  # whether a fit tells its progress how each round does on validation rows

    settings: tuple[tuple[str, Any], ...]

    def __init__(self, **params: Any) -> None:
        settings = tuple((name, self._frozen(name, params[name])) for name in sorted(params))
        object.__setattr__(self, "settings", settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings)})"

    @property
    def params(self) -> Mapping[str, Any]:
        return dict(self.settings)

    @property
    def framework(self) -> str:
        """The name of the module that loads what this trainer saves."""
        return type(self).__module__.rpartition(".")[2]

    def device(self, accelerator: str, machine: Machine) -> Device:
        """What to fit on there. Raises UnknownAcceleratorError, NoSuchDeviceError."""
        return choose(accelerator, self.accelerators, machine, type(self).__name__, self.needs)

    @abstractmethod
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
    ) -> Any:
        """A fitted model; `params` overrides the declared ones, and the same seed gives the same model.

        x is float32 (n, columns) with NaN where missing, y (n,) holds 0/1, classes from 0 on, or values. `device`
        is one of `accelerators`. With validation
        rows, fitting stops when they no longer improve, and the model keeps its best state. A fit that finds
        its `progress` goes on from there, to the model that it would have been without the interruption; one that
        cannot keeps none, and starts over.
        """

    @abstractmethod
    def write(self, model: Any, directory: Path) -> None:
        """Write the model into `directory`, which exists, in the framework's safe format."""

    def graph(self, model: Any) -> Graph | None:  # noqa: ARG002 - a default that frameworks override
        """The model as an ONNX graph, None where the framework has none; NotConvertibleError where this model has."""
        return None

    def placed(self, place: Place) -> Trainer:  # noqa: ARG002 - a default for those who need only what `fit` is given
        """The trainer that looks elsewhere for more rows like those of its fit, if it is one that does."""
        return self

    def save(self, model: Any, directory: Path, rows: np.ndarray | None = None) -> None:
        """Write the model into `directory` (made if missing), and `serving.onnx` if that answers the same.

        `rows`, as `fit` takes them, are among those that the two are compared on.
        """
        from mlops_assets.trainers.graphs import exact
        from mlops_assets.trainers.graphs.graph import NotConvertibleError

        directory.mkdir(parents=True, exist_ok=True)
        (directory / SERVING_GRAPH).unlink(missing_ok=True)
        self.write(model, directory)
        try:
            graph = self.graph(model)
        except NotConvertibleError as reason:
            logger.info("%s: %r is served by its own library: %s", directory, self, reason)
            return
        if graph is not None:
            exact.add_graph(directory, graph, native_predictor(self.framework, directory), rows)

    def learned(self, model: Any) -> dict[str, Any]:  # noqa: ARG002 - a default that frameworks override
        """Parameters that early stopping found, to be fixed when refitting without validation rows."""
        return {}

    def importance(self, model: Any) -> list[float]:  # noqa: ARG002 - a default that frameworks override
        """How much each column served, in the columns' order; empty where it is not cheaply known."""
        return []

    def _frozen(self, name: str, value: Any) -> Any:
        """JSON scalars, and lists of them as tuples: parameters are hashed, and travel to other machines."""
        if isinstance(value, list | tuple):
            return tuple(self._frozen(name, item) for item in value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TrainerParameterError.of(
            type(self).__name__, name, f"is a {type(value).__name__}", "Give a number, text, Boolean or a list of them."
        )


@cache
def frameworks() -> tuple[str, ...]:
    """The frameworks that have a file here."""
    return tuple(sorted(module.name for module in iter_modules(__path__) if not module.ispkg))


@cache
def trainers() -> dict[str, type[Trainer]]:
    """Every trainer class, by name."""
    modules = [import_module(f"{__name__}.{framework}") for framework in frameworks()]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Trainer)
        and not name.startswith("_")
        and value.__module__ == module.__name__
    }


def trainer_named(name: str, **params: Any) -> Trainer:
    """The trainer called `name` with its parameters, as YAML and remote training spell it."""
    if name not in trainers():
        raise UnknownTrainerError.of("trainer", name, sorted(trainers()))
    return trainers()[name](**params)


def load_predictor(framework: str, directory: Path) -> Predictor:
    """The model saved in `directory` by a trainer of `framework`, as it serves: its ONNX graph if it has one.

    Raises UnknownTrainerError for a framework that has no file here, UnsafeModelFileError for a file
    that is not what the framework's trainer writes, FileNotFoundError where there is none.
    """
    if framework in frameworks() and (directory / SERVING_GRAPH).is_file():
        from mlops_assets.trainers.graphs import runtime

        return runtime.load(directory)
    return native_predictor(framework, directory)


def native_predictor(framework: str, directory: Path) -> Predictor:
    """The same by the framework's own library; raises as `load_predictor` does."""
    if framework not in frameworks():
        raise UnknownTrainerError.of("framework", framework, frameworks())
    predictor: Predictor = import_module(f"{__name__}.{framework}").load(directory)
    return predictor


def model_file(directory: Path, name: str, magic: bytes, wanted: str) -> Path:
    """The path of a model file, once its first bytes show the format that is `wanted`."""
    path = directory / name
    if not path.is_file():
        held = sorted(item.name for item in directory.iterdir()) if directory.is_dir() else []
        raise FileNotFoundError(f"No model file {path} (the directory holds: {', '.join(held) or 'nothing'}).")
    with path.open("rb") as file:
        head = file.read(len(magic))
    if head != magic:
        raise UnsafeModelFileError.of(path, wanted, "a pickle" if head[:1] == b"\x80" else f"bytes {head!r}")
    return path


def inside_ray() -> bool:
    """Whether this process is part of a Ray cluster; where Ray was never imported, that needs no import of it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def threads() -> int:
    """How many threads a framework may use: OMP_NUM_THREADS, else every core."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in trainers():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainers()[name]
