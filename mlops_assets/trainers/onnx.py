"""A model that was trained elsewhere, given as an ONNX file: judged, registered and served like any other.

`OnnxClassifier(file="models/churn.onnx")` fits nothing. The graph takes float32 or double of shape (rows, columns) in
the order of the declaration's inputs, missing as NaN, and answers one number a row, or a column of several. It holds
its own weights, and only operators of ONNX itself: another library's would be code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file
from mlops_assets.trainers.graphs.runtime import WANTED, session_of
from resources.hardware import CPU, Device

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from mlops_assets.trainers import Predictor

FILE, CHOICE = "model.onnx", "answer.json"
KNOWN = ("file", "sha256", "output", "column")
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
NUMBERS = {"tensor(float)": "float32", "tensor(double)": "float64"}
TRIED_ROWS = 1000


@dataclass(frozen=True)
class Given:
    """An ONNX file's bytes, and which of its outputs, and which column of that, is the answer."""

    graph: bytes
    output: str
    column: int

    def predictor(self, path: Path) -> Predictor:
        import numpy as np

        session = session_of(path, self.graph)
        (asked,) = session.get_inputs()
        dtype, name, outputs, run = NUMBERS[asked.type], asked.name, [self.output], session.run

        def predict(x: np.ndarray) -> np.ndarray:
            answer = run(outputs, {name: x.astype(dtype, copy=False)})[0]
            return answer.reshape(len(x), -1)[:, self.column].astype(np.float64)

        return predict


class _Onnx(Trainer):
    """`file` is a path, `sha256` the content it must have; `output` and `column` say what the answer is.

    Without them it is the only output of numbers (or the one called `probabilities`), and its last column.
    """

    scores = False

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,  # noqa: ARG002 - nothing is learned
        x_valid: np.ndarray | None,  # noqa: ARG002
        y_valid: np.ndarray | None,  # noqa: ARG002
        params: Mapping[str, Any],
        seed: int,  # noqa: ARG002
        progress: Progress = NO_CHECKPOINTS,  # noqa: ARG002
        device: Device = CPU,  # noqa: ARG002 - it computes on CPUs alone
    ) -> Given:
        settings = {**self.params, **params}
        for name in settings:
            if name not in KNOWN:
                raise self._problem(name, "is not known", f"It knows: {', '.join(KNOWN)}.")
        path, graph = self._read(settings)
        refuse_code(path, graph)
        session = session_of(path, graph)
        self._refuse_inputs(session, x.shape[1])
        output = self._output(session, settings.get("output"))
        given = Given(graph, output, int(settings.get("column", -1)))
        self._try(given, path, x[:TRIED_ROWS])
        return given

    def write(self, model: Given, directory: Path) -> None:
        (directory / FILE).write_bytes(model.graph)
        (directory / CHOICE).write_text(json.dumps({"output": model.output, "column": model.column}))

    def _read(self, settings: Mapping[str, Any]) -> tuple[Path, bytes]:
        path = Path(str(settings.get("file", "")))
        if not path.is_file():
            raise self._problem("file", f"is {str(path)!r}, which is no file", "Give the path of an ONNX file.")
        graph = path.read_bytes()
        found, wanted = sha256(graph).hexdigest(), settings.get("sha256")
        if wanted not in {None, found}:
            raise self._problem("sha256", f"is {wanted!r}, but {path} has {found!r}", "Was the file exchanged?")
        return path, graph

    def _refuse_inputs(self, session: Any, columns: int) -> None:
        asked = session.get_inputs()
        if len(asked) != 1 or asked[0].type not in NUMBERS:
            found = ", ".join(f"{one.name}: {one.type}" for one in asked)
            fix = "Export it with one float matrix of all columns."
            raise self._problem("file", f"takes {found}, not one matrix of float32 or double", fix)
        shape = asked[0].shape
        if len(shape) != 2 or isinstance(shape[0], int) or shape[1] not in {columns, None} | _names(shape):
            raise self._problem(
                "file",
                f"takes the shape {shape}, and the declared inputs are (rows, {columns})",
                "Export it with any number of rows, and declare its inputs in its order.",
            )

    def _output(self, session: Any, wanted: str | None) -> str:
        found = {one.name: one.type for one in session.get_outputs()}
        numbers = [name for name, kind in found.items() if kind in NUMBERS]
        chosen = [wanted] if wanted else numbers if len(numbers) == 1 else ["probabilities"]
        if chosen[0] not in numbers:
            told = ", ".join(f"{name}: {kind}" for name, kind in found.items())
            fix = "Name one of them that is a tensor of numbers; scikit-learn's converters give one with zipmap=False."
            raise self._problem("output", f"is {wanted!r}, and {told} are there", fix)
        return chosen[0]

    def _try(self, given: Given, path: Path, x: np.ndarray) -> None:
        """Does it answer rows of the training set, each by itself too?"""
        import numpy as np

        predict = given.predictor(path)
        try:
            answers, _ = predict(x), predict(x[:1])
        except Exception as problem:
            fix = "Export it with any number of rows, and choose `output` and `column`."
            raise self._problem("file", f"does not answer the training rows ({problem})", fix) from problem
        if not np.isfinite(answers).all():
            raise self._problem("file", "answers rows with NaN", "Let the graph fill what is missing.")
        if self.task == "classification" and (answers.min() < 0 or answers.max() > 1):
            raise self._problem("file", "answers beyond 0 and 1", "End the graph in a Sigmoid or Softmax.")

    def _problem(self, name: str, problem: str, fix: str) -> TrainerParameterError:
        return TrainerParameterError.of(type(self).__name__, name, problem, fix)


class OnnxClassifier(_Onnx):
    """Predicts the probability of the positive class."""

    task = "classification"


class OnnxRegressor(_Onnx):
    """Predicts a value."""

    task = "regression"


def load(directory: Path) -> Predictor:
    path = model_file(directory, FILE, b"", WANTED)
    choice = model_file(directory, CHOICE, b"{", "which output is the answer, in JSON")
    graph = path.read_bytes()
    refuse_code(path, graph)
    try:
        document = json.loads(choice.read_bytes())
        return Given(graph, str(document["output"]), int(document["column"])).predictor(path)
    except (ValueError, KeyError) as problem:
        raise UnsafeModelFileError.of(choice, "which output is the answer, in JSON", "something else") from problem


def refuse_code(path: Path, graph: bytes) -> None:
    """Refuses what is no ONNX, names operators of another library, or keeps its weights in another file."""
    import onnx

    if graph[:1] == b"\x80":
        raise UnsafeModelFileError.of(path, WANTED, "a pickle")
    try:
        model = onnx.load_model_from_string(graph)
    except Exception as problem:  # protobuf's own errors
        raise UnsafeModelFileError.of(path, WANTED, "something that is no ONNX") from problem
    own = {function.domain for function in model.functions}
    if strange := sorted({node.domain for node in _nodes(model)} - DOMAINS - own):
        raise UnsafeModelFileError.of(path, "only ONNX's own operators", f"those of {', '.join(strange)}")
    if elsewhere := sorted(tensor.name for tensor in _tensors(model) if tensor.external_data or tensor.data_location):
        raise UnsafeModelFileError.of(path, WANTED, f"weights in another file: {', '.join(elsewhere)}")


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, also those in branches, loops and functions."""
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant, wherever it stands."""
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    yield from (sparse.values, sparse.indices)


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph, the bodies of functions, and the graphs that are attributes of their nodes."""
    left: list[Any] = [model.graph, *model.functions]
    while left:
        graph = left.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                left += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _names(shape: list[Any]) -> set[str]:
    return {size for size in shape if isinstance(size, str)}
