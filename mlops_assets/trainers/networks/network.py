"""A fitted net as numbers: what a framework's file here makes while fitting, and rebuilds when loading."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.trainers import UnsafeModelFileError, model_file

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.graphs.graph import Graph

ARCHITECTURE = "architecture.json"
TENSORS = "model.safetensors"
FORMAT = "tabular-net-1"
TASKS = ("classification", "regression")
LIMIT = 10.0  # standard deviations: a value beyond is taken for one at the edge, else one typing error decides


@dataclass(frozen=True)
class Preparation:
    """How a row becomes a net's input: in standard deviations from the training mean, and which were missing."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray) -> Self:
        """From training rows; a column without values or without spread stays 0."""
        import numpy as np

        known = ~np.isnan(x)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, x, 0).sum(axis=0, dtype=np.float64) / count
        spread = np.sqrt((np.where(known, x - mean, 0) ** 2).sum(axis=0) / count)
        return cls(mean.astype(np.float32), np.where(spread > 0, spread, 1).astype(np.float32))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(n, columns) with NaN to (n, 2 * columns) without: the values, then 1 where one was missing."""
        import numpy as np

        missing = np.isnan(x)
        values = np.clip((np.where(missing, self.mean, x) - self.mean) / self.scale, -LIMIT, LIMIT)
        return np.concatenate([values, missing.astype(np.float32)], axis=1)


@dataclass(frozen=True)
class Layer:
    """A dense layer: `weight` is float32 (outputs, inputs), `bias` (outputs,)."""

    weight: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True)
class Network:
    """Dense layers with ReLU between them; the last gives a logit (classification) or a value."""

    task: str
    preparation: Preparation
    layers: tuple[Layer, ...]
    epochs: int

    @cached_property
    def columns(self) -> int:
        return len(self.preparation.mean)

    @classmethod
    def drawn(cls, task: str, preparation: Preparation, hidden: Sequence[int], seed: int) -> Self:
        """A net before it has learned anything, the same for every framework: He's initial weights."""
        import numpy as np

        random = np.random.default_rng(seed)
        sizes = [2 * len(preparation.mean), *hidden, 1]
        layers = tuple(
            Layer(
                random.normal(0, np.sqrt(2 / inputs), (outputs, inputs)).astype(np.float32),
                np.zeros(outputs, np.float32),
            )
            for inputs, outputs in pairwise(sizes)
        )
        return cls(task, preparation, layers, epochs=0)

    def predictor(self, forward: Callable[[np.ndarray], np.ndarray]) -> Predictor:
        """What predicts with a framework's `forward`: prepared rows to what the last layer gives, (n, 1)."""
        import numpy as np

        def predict(x: np.ndarray) -> np.ndarray:
            value = forward(self.preparation(x)).astype(np.float64).reshape(-1)
            return 1 / (1 + np.exp(-value)) if self.task == "classification" else value

        return predict

    def write(self, directory: Path) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        document = {
            "format": FORMAT,
            "task": self.task,
            "columns": self.columns,
            "hidden": [len(layer.bias) for layer in self.layers[:-1]],
            "activation": "relu",
            "epochs": self.epochs,
        }
        tensors = {"mean": self.preparation.mean, "scale": self.preparation.scale}
        for place, layer in enumerate(self.layers):
            tensors |= {f"layers.{place}.weight": layer.weight, f"layers.{place}.bias": layer.bias}
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / TENSORS)
        (directory / ARCHITECTURE).write_text(json.dumps(document, indent=1))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The net of a directory. Raises FileNotFoundError, UnsafeModelFileError."""
        document = _document(model_file(directory, ARCHITECTURE, b"{", "a net's architecture in JSON"))
        shapes = _shapes(document["columns"], document["hidden"])
        tensors = _tensors(model_file(directory, TENSORS, b"", "safetensors"), shapes)
        layers = tuple(
            Layer(tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"])
            for place in range(len(document["hidden"]) + 1)
        )
        preparation = Preparation(tensors["mean"], tensors["scale"])
        return cls(document["task"], preparation, layers, document["epochs"])

    def graph(self) -> Graph:
        """The same net in ONNX; computed in float32, as the frameworks do."""
        import numpy as np

        from mlops_assets.trainers.graphs.graph import Graph, assemble, cast, node

        constants: dict[str, Any] = {
            "mean": self.preparation.mean[np.newaxis, :],
            "scale": self.preparation.scale[np.newaxis, :],
            "low": np.array(-LIMIT, np.float32),
            "high": np.array(LIMIT, np.float32),
        }
        nodes = [
            node("IsNaN", ["x"], "missing"),
            node("Where", ["missing", "mean", "x"], "whole"),
            node("Sub", ["whole", "mean"], "centred"),
            node("Div", ["centred", "scale"], "scaled"),
            node("Clip", ["scaled", "low", "high"], "values"),
            node("Cast", ["missing"], "flags", to=1),
            node("Concat", ["values", "flags"], "layer0", axis=1),
        ]
        for place, layer in enumerate(self.layers):
            constants |= {f"weight{place}": layer.weight, f"bias{place}": layer.bias}
            parts = [f"layer{place}", f"weight{place}", f"bias{place}"]
            last = place == len(self.layers) - 1
            nodes.append(node("Gemm", parts, "raw" if last else f"sum{place}", transB=1))
            if not last:
                nodes.append(node("Relu", [f"sum{place}"], f"layer{place + 1}"))
        nodes.append(cast("raw", "value"))
        if classifies := self.task == "classification":
            nodes.append(node("Sigmoid", ["value"], "share"))
        spread = np.array([-LIMIT - 1, -2.0, -0.5, 0.5, 2.0, LIMIT + 1])
        scaling = zip(self.preparation.mean, self.preparation.scale, strict=True)
        edges = [mean + scale * spread for mean, scale in scaling]
        return Graph(assemble(nodes, constants, self.columns, "share" if classifies else "value"), edges)


def _document(path: Path) -> dict[str, Any]:
    """An architecture, once every word of it is one of ours."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as problem:
        raise UnsafeModelFileError.of(path, "a net's architecture in JSON", "something else") from problem
    expected: Mapping[str, Any] = {"format": FORMAT, "activation": "relu"}
    for name, value in expected.items():
        if document.get(name) != value:
            raise UnsafeModelFileError.of(path, f"{name} {value!r}", repr(document.get(name)))
    if set(document) != {*expected, "task", "columns", "hidden", "epochs"} or document["task"] not in TASKS:
        raise UnsafeModelFileError.of(path, "task, columns, hidden and epochs", ", ".join(document))
    if not all(isinstance(size, int) and size > 0 for size in [document["columns"], *document["hidden"]]):
        raise UnsafeModelFileError.of(path, "whole sizes above 0", f"{document['columns']}, {document['hidden']}")
    return document


def _shapes(columns: int, hidden: Sequence[int]) -> dict[str, tuple[int, ...]]:
    sizes = [2 * columns, *hidden, 1]
    shapes: dict[str, tuple[int, ...]] = {"mean": (columns,), "scale": (columns,)}
    for place, (inputs, outputs) in enumerate(pairwise(sizes)):
        shapes |= {f"layers.{place}.weight": (outputs, inputs), f"layers.{place}.bias": (outputs,)}
    return shapes


def _tensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, np.ndarray] = load_file(path)
    except SafetensorError as problem:
        found = "a pickle" if path.read_bytes()[:1] == b"\x80" else f"something it cannot read ({problem})"
        raise UnsafeModelFileError.of(path, "safetensors", found) from problem
    found_shapes = {name: value.shape for name, value in tensors.items() if str(value.dtype) == "float32"}
    if found_shapes != shapes:
        raise UnsafeModelFileError.of(path, f"the float32 tensors {shapes}", f"{found_shapes}")
    return tensors
