"""A fitted net as numbers: what a framework's file here makes while fitting, and rebuilds when loading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.trainers import Classes, UnsafeModelFileError, model_file
from mlops_assets.trainers.networks.preparation import ImagePreparation, Preparation

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.graphs.graph import Graph

ARCHITECTURE = "architecture.json"
TENSORS = "model.safetensors"
TABLES, IMAGES = "tabular-net-1", "image-net-1"
TASKS = ("classification", "multiclass", "regression")
KERNEL = 3  # a convolution reads each pixel with those around it
ROWS_AT_ONCE = 4096  # of images that are predicted together: each takes the room of all its channels


@dataclass(frozen=True)
class Layer:
    """A dense layer: `weight` is float32 (outputs, inputs), `bias` (outputs,).

    Or a convolution: `weight` is (outputs, inputs, KERNEL, KERNEL). What it gives is as high and wide as what it reads,
    with zeros around; after its ReLU each two by two become their largest.
    """

    weight: np.ndarray
    bias: np.ndarray

    @property
    def convolves(self) -> bool:
        return self.weight.ndim > 2


@dataclass(frozen=True)
class Network:
    """Convolutions, if it reads images, then dense layers; ReLU between them.

    The last gives a logit (classification), one for each class (multiclass), or a value.
    """

    task: str
    preparation: Preparation
    layers: tuple[Layer, ...]
    epochs: int

    @cached_property
    def columns(self) -> int:
        return self.preparation.columns

    @classmethod
    def drawn(
        cls,
        task: str,
        preparation: Preparation,
        hidden: Sequence[int],
        seed: int,
        channels: Sequence[int] = (),
        outputs: int = 1,
    ) -> Self:
        """A net before it has learned anything, the same for every framework: He's initial weights."""
        import numpy as np

        random = np.random.default_rng(seed)
        layers = tuple(
            Layer(
                random.normal(0, np.sqrt(2 / prod(shape[1:])), shape).astype(np.float32),
                np.zeros(shape[0], np.float32),
            )
            for shape in _shapes(preparation.image, preparation.inputs, channels, hidden, outputs)
        )
        return cls(task, preparation, layers, epochs=0)

    def predictor(self, forward: Callable[[np.ndarray], np.ndarray]) -> Predictor:
        """What predicts with a framework's `forward`: prepared rows to what the last layer gives, (n, outputs)."""
        import numpy as np

        def value(x: np.ndarray) -> np.ndarray:
            return forward(self.preparation(x)).astype(np.float64).reshape(-1)

        def shares(x: np.ndarray) -> np.ndarray:
            parts = [x[start : start + ROWS_AT_ONCE] for start in range(0, max(len(x), 1), ROWS_AT_ONCE)]
            logits = np.concatenate([forward(self.preparation(part)) for part in parts]).astype(np.float64)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            return odds / odds.sum(axis=1, keepdims=True)

        if self.task == "multiclass":
            return Classes(shares)
        return value if self.task == "regression" else lambda x: 1 / (1 + np.exp(-value(x)))

    def write(self, directory: Path) -> None:
        import numpy as np
        from safetensors.numpy import save_file

        tensors = {"mean": self.preparation.mean, "scale": self.preparation.scale}
        for place, layer in enumerate(self.layers):
            tensors |= {f"layers.{place}.weight": layer.weight, f"layers.{place}.bias": layer.bias}
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / TENSORS)
        (directory / ARCHITECTURE).write_text(json.dumps(self._document(), indent=1))

    def _document(self) -> dict[str, Any]:
        image, sizes = self.preparation.image, [len(layer.bias) for layer in self.layers]
        convolutions = sum(layer.convolves for layer in self.layers)
        of_image = {"image": list(image), "channels": sizes[:convolutions]} if image else {}
        return {
            "format": IMAGES if image else TABLES,
            "task": self.task,
            "columns": self.columns,
            **of_image,
            "hidden": sizes[convolutions:-1],
            **({"classes": sizes[-1]} if self.task == "multiclass" else {}),
            "activation": "relu",
            "epochs": self.epochs,
        }

    @classmethod
    def read(cls, directory: Path) -> Self:
        """The net of a directory. Raises FileNotFoundError, UnsafeModelFileError."""
        document = _document(model_file(directory, ARCHITECTURE, b"{", "a net's architecture in JSON"))
        image, columns = document.get("image"), document["columns"]
        channels, outputs = document.get("channels", ()), document.get("classes", 1)
        of_layers = [*_shapes(image, 2 * columns, channels, document["hidden"], outputs)]
        scale = (image[2] if image else columns,)
        wanted: dict[str, tuple[int, ...]] = {"mean": scale, "scale": scale}
        for place, shape in enumerate(of_layers):
            wanted |= {f"layers.{place}.weight": shape, f"layers.{place}.bias": shape[:1]}
        tensors = _tensors(model_file(directory, TENSORS, b"", "safetensors"), wanted)
        layers = tuple(
            Layer(tensors[f"layers.{place}.weight"], tensors[f"layers.{place}.bias"]) for place in range(len(of_layers))
        )
        scales = tensors["mean"], tensors["scale"]
        preparation = ImagePreparation(*scales, tuple(image)) if image else Preparation(*scales)
        return cls(document["task"], preparation, layers, document["epochs"])

    def graph(self) -> Graph:
        """The same net in ONNX; computed in float32, as the frameworks do."""
        from mlops_assets.trainers.graphs.graph import SHARES, Graph, assemble, cast, node

        nodes, constants = self.preparation.graph()
        for place, layer in enumerate(self.layers):
            constants |= {f"weight{place}": layer.weight, f"bias{place}": layer.bias}
            nodes += _convolution(place) if layer.convolves else self._dense(place)
        nodes.append(cast(f"sum{len(self.layers) - 1}", "value"))
        if self.task == "multiclass":
            nodes.append(node("Softmax", ["value"], SHARES, axis=1))
            nodes += [node("ArgMax", [SHARES], "chosen", axis=1), cast("chosen", "class")]
            proto = assemble(nodes, constants, self.columns, "class", classes=len(self.layers[-1].bias))
        elif self.task == "classification":
            proto = assemble([*nodes, node("Sigmoid", ["value"], "share")], constants, self.columns, "share")
        else:
            proto = assemble(nodes, constants, self.columns, "value")
        return Graph(proto, self.preparation.edges)

    def _dense(self, place: int) -> list[NodeProto]:
        """From `layer<place>` to `sum<place>` and, but for the last, through ReLU to the next."""
        from mlops_assets.trainers.graphs.graph import node

        given = f"layer{place}"
        flat = [node("Flatten", [given], f"flat{place}")] if self.preparation.image else []
        parts = [f"flat{place}" if flat else given, f"weight{place}", f"bias{place}"]
        summed = [*flat, node("Gemm", parts, f"sum{place}", transB=1)]
        last = place == len(self.layers) - 1
        return summed if last else [*summed, node("Relu", [f"sum{place}"], f"layer{place + 1}")]


def _convolution(place: int) -> list[NodeProto]:
    from mlops_assets.trainers.graphs.graph import node

    parts = [f"layer{place}", f"weight{place}", f"bias{place}"]
    return [
        node("Conv", parts, f"sum{place}", pads=[KERNEL // 2] * 4),
        node("Relu", [f"sum{place}"], f"rectified{place}"),
        node("MaxPool", [f"rectified{place}"], f"layer{place + 1}", kernel_shape=[2, 2], strides=[2, 2]),
    ]


def _document(path: Path) -> dict[str, Any]:
    """An architecture, once every word of it is one of ours."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as problem:
        raise UnsafeModelFileError.of(path, "a net's architecture in JSON", "something else") from problem
    if document.get("format") not in (TABLES, IMAGES):
        raise UnsafeModelFileError.of(path, f"format {TABLES!r} or {IMAGES!r}", repr(document.get("format")))
    if document.get("activation") != "relu":
        raise UnsafeModelFileError.of(path, "activation 'relu'", repr(document.get("activation")))
    words = ["format", "activation", "task", "columns", "hidden", "epochs"]
    words += ["image", "channels"] if document["format"] == IMAGES else []
    words += ["classes"] if document.get("task") == "multiclass" else []
    if set(document) != {*words} or document["task"] not in TASKS:
        raise UnsafeModelFileError.of(path, ", ".join(words), ", ".join(document))
    image, channels = document.get("image", [1, 1, document["columns"]]), document.get("channels", [])
    lists = (document["hidden"], image, channels)
    if not all(isinstance(one, list) for one in lists):
        raise UnsafeModelFileError.of(path, "hidden, image and channels as lists", str(lists))
    sizes = [document["columns"], document.get("classes", 1), *document["hidden"], *image, *channels]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UnsafeModelFileError.of(path, "whole sizes above 0", str(sizes))
    if len(image) != 3 or prod(image) != document["columns"] or min(image[:2]) >> len(channels) < (len(channels) > 0):
        raise UnsafeModelFileError.of(path, "an image of as many numbers as columns, large enough", str(image))
    return document


def _shapes(
    image: Sequence[int] | None, inputs: int, channels: Sequence[int], hidden: Sequence[int], outputs: int
) -> Iterator[tuple[int, ...]]:
    """The shape of each layer's weight, in order; `inputs` are a table's."""
    if image:
        height, width, planes = image
        for size in channels:
            yield size, planes, KERNEL, KERNEL
            height, width, planes = height // 2, width // 2, size
        inputs = planes * height * width
    for before, size in pairwise([inputs, *hidden, outputs]):
        yield size, before


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
