"""A model as an ONNX graph: `x`, float32 of shape (n, columns), to `y`, double of shape (n,).

One that chooses among classes also tells `shares`, double of shape (n, classes): how likely it takes each to be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from onnx import ModelProto, NodeProto

OPSETS = {"": 18, "ai.onnx.ml": 5}  # ONNX 1.16, of 2024
IR_VERSION = 10
INPUT, OUTPUT = "x", "y"
FLAT, SHARES = "flat", "shares"


class NotConvertibleError(ValueError):
    """A model has a part that this project has no ONNX operator for; its own library serves it."""

    @classmethod
    def of(cls, part: str, found: object, known: Iterable[str]) -> NotConvertibleError:
        return cls(f"its {part} is {found!r}, and what is converted is: {', '.join(known)}")


@dataclass(frozen=True)
class Graph:
    """An ONNX model, and the values of each column around which its answer may turn (thresholds, means)."""

    proto: ModelProto
    edges: Sequence[np.ndarray]


def assemble(
    nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray], columns: int, last: str, classes: int = 0
) -> ModelProto:
    """The ONNX model of `nodes`, which read `x` and the constants; `last`, double of shape (n, 1), becomes `y`.

    Nodes that tell the shares of so many `classes` name them `shares`.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    flat = helper.make_node("Reshape", [last, FLAT], [OUTPUT])
    constants = {**constants, FLAT: np.array([-1])}
    shares = [helper.make_tensor_value_info(SHARES, TensorProto.DOUBLE, ["n", classes])] if classes else []
    graph = helper.make_graph(
        [*nodes, flat],
        "model",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.DOUBLE, ["n"]), *shares],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in OPSETS.items()], ir_version=IR_VERSION
    )


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """A node of one output, in the domain that has the operator."""
    from onnx import helper

    domain = "ai.onnx.ml" if operator.startswith("TreeEnsemble") else ""
    return helper.make_node(operator, list(inputs), [output], domain=domain, **attributes)


def cast(value: str, output: str) -> NodeProto:
    """A node that makes doubles of a value."""
    from onnx import TensorProto

    return node("Cast", [value], output, to=TensorProto.DOUBLE)


def probes(edges: Sequence[np.ndarray], rows: int, seed: int = 0) -> np.ndarray:
    """Rows that stand where an inexact graph would show: on the edges, a float beside them, missing, extreme.

    A double threshold lies between two float32: both are drawn, and one more on each side.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    return np.column_stack([random.choice(_around(column), rows) for column in edges]).astype(np.float32)


def _around(edges: np.ndarray) -> np.ndarray:
    """Every float32 worth asking for in a column of these edges; one in ten is missing."""
    import numpy as np

    limit = np.float32(1e30)
    near = np.clip(np.asarray(edges, dtype=np.float64), -limit, limit).astype(np.float32)
    usual = np.array([0.0, -0.0, 1.0, -1.0, 1e-38, -1e-38, limit, -limit], dtype=np.float32)
    values = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, -limit * 2), usual])
    return np.concatenate([values, np.full(len(values) // 9 + 1, np.nan, dtype=np.float32)])
