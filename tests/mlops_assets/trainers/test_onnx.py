"""A model that was trained elsewhere: what is taken, what is refused, and that nothing of it is run as code."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mlops_assets.trainers import TrainerParameterError, UnsafeModelFileError, load_predictor, trainer_named

X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(float)
SUM = helper.make_node("MatMul", ["x", "weights"], ["sum"])
SHARE = helper.make_node("Sigmoid", ["sum"], ["share"])


def file(
    path: Path,
    nodes: Sequence[NodeProto] = (SUM, SHARE),
    output: str = "share",
    *,
    shape: Sequence[int | str | None] = (None, 3),
    weights: np.ndarray | None = None,
    kind: int = TensorProto.FLOAT,
    more: Sequence[Any] = (),
    domains: Sequence[str] = (),
) -> dict[str, str]:
    """Writes an ONNX file and returns the parameter that names it."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = np.array([[2.0], [1.0], [0.0]]) if weights is None else weights
    graph = helper.make_graph(
        list(nodes),
        "elsewhere",
        [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info(output, kind, [shape[0], None]), *more],
        [numpy_helper.from_array(weights.astype(dtype), "weights")],
    )
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())
    return {"file": str(path)}


def fitted(name: str = "OnnxClassifier", **params: Any) -> Any:
    return trainer_named(name, **params).fit(X, Y, None, None, {}, 0)


def served(directory: Path, name: str = "OnnxClassifier", **params: Any) -> np.ndarray:
    trainer = trainer_named(name, **params)
    trainer.save(trainer.fit(X, Y, None, None, {}, 0), directory)
    return load_predictor("onnx", directory)(X)


def test_two_columns_of_probabilities_give_the_second(tmp_path: Path) -> None:
    """As scikit-learn's converters write a classifier: labels, and the probabilities of both classes."""
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    weights = np.array([[0.0, 2.0], [0.0, 1.0], [0.0, 0.0]])
    label = helper.make_tensor_value_info("label", TensorProto.INT64, [None])
    params = file(tmp_path / "two.onnx", nodes, "probabilities", weights=weights, more=[label])
    expected = 1 / (1 + np.exp(-(2 * X[:, 0] + X[:, 1])))
    np.testing.assert_allclose(served(tmp_path / "saved", **params), expected, atol=1e-6)
    np.testing.assert_allclose(served(tmp_path / "first", **params, column=0), 1 - expected, atol=1e-6)


def test_a_graph_in_double_is_asked_in_double(tmp_path: Path) -> None:
    """Its answers keep what float32 would lose."""
    params = file(tmp_path / "double.onnx", [SUM], "sum", weights=np.full((3, 1), 1e9), kind=TensorProto.DOUBLE)
    expected = X.astype(float).sum(axis=1) * 1e9
    np.testing.assert_allclose(served(tmp_path / "saved", "OnnxRegressor", **params), expected, rtol=1e-9)


def test_what_is_served_is_the_file_that_was_given(tmp_path: Path) -> None:
    """Byte for byte; `sha256` holds the declaration to one content."""
    params = file(tmp_path / "given.onnx")
    served(tmp_path / "saved", **params)
    content = (tmp_path / "given.onnx").read_bytes()
    assert (tmp_path / "saved" / "model.onnx").read_bytes() == content
    fitted(**params, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(TrainerParameterError, match="exchanged"):
        fitted(**params, sha256="0" * 64)


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        ({"shape": (None, 4), "weights": np.ones((4, 1))}, r"declared inputs are \(rows, 3\)"),
        ({"shape": (1, 3)}, "any number of rows"),
        ({"nodes": [SUM], "output": "sum"}, "beyond 0 and 1"),
        ({"weights": np.full((3, 1), np.nan)}, "NaN"),
        ({"kind": TensorProto.FLOAT16, "shape": (None, 3)}, "one matrix of float32"),
    ],
    ids=["columns", "one row", "logits", "nan", "float16"],
)
def test_a_graph_that_could_not_serve_is_refused_when_it_is_declared(
    made: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    """The error says what does not fit and how to export it."""
    with pytest.raises((TrainerParameterError, UnsafeModelFileError), match=problem):
        fitted(**file(tmp_path / "odd.onnx", **made))


def test_a_map_of_classes_is_no_answer(tmp_path: Path) -> None:
    """ZipMap, which converters add by default, gives a dictionary a row."""
    zipmap = helper.make_node("ZipMap", ["share"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[1])
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    graph = helper.make_graph(
        [SUM, SHARE, zipmap],
        "zipmap",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_value_info("maps", kind)],
        [numpy_helper.from_array(np.ones((3, 1), np.float32), "weights")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (tmp_path / "maps.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(TrainerParameterError, match="zipmap=False"):
        fitted(file=str(tmp_path / "maps.onnx"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerParameterError, match=r"nowhere\.onnx"):
        fitted(file=str(tmp_path / "nowhere.onnx"))
    with pytest.raises(TrainerParameterError, match="path of an ONNX file"):
        fitted()


def evil(path: Path, where: str) -> dict[str, str]:
    """An operator of another library, in the graph or in a branch of it."""
    launch = helper.make_node("Launch", ["sum"], ["share"], domain="com.evil")
    if where == "graph":
        return file(path, [SUM, launch], domains=["com.evil"])
    told = [helper.make_tensor_value_info("share", TensorProto.FLOAT, None)]
    branch = helper.make_graph([launch], "branch", [], told)
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True), "yes"))
    choice = helper.make_node("If", ["yes"], ["share"], then_branch=branch, else_branch=branch)
    return file(path, [SUM, yes, choice], domains=["com.evil"])


@pytest.mark.parametrize("where", ["graph", "branch"])
def test_an_operator_of_another_library_is_refused(tmp_path: Path, where: str) -> None:
    """When it is given, and when a model file was exchanged for it afterwards."""
    params = evil(tmp_path / "evil.onnx", where)
    with pytest.raises(UnsafeModelFileError, match=r"com\.evil"):
        fitted(**params)
    served(tmp_path / "saved", **file(tmp_path / "good.onnx"))
    (tmp_path / "evil.onnx").rename(tmp_path / "saved" / "model.onnx")
    with pytest.raises(UnsafeModelFileError, match=r"com\.evil"):
        load_predictor("onnx", tmp_path / "saved")


@pytest.mark.parametrize("where", ["initializer", "attribute"])
def test_weights_in_another_file_are_refused(tmp_path: Path, where: str) -> None:
    """A graph may not read a file of its choosing, wherever the tensor stands."""
    stolen = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[3, 1])
    stolen.data_location = TensorProto.EXTERNAL
    stolen.external_data.add(key="location", value="../../../../etc/passwd")
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["weights"], value=stolen), SUM, SHARE]
        if where == "attribute"
        else [SUM, SHARE],
        "elsewhere",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("share", TensorProto.FLOAT, [None, 1])],
    )
    if where == "initializer":
        stolen.name = "weights"
        graph.initializer.append(stolen)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "thief.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeModelFileError, match="weights in another file"):
        fitted(file=str(tmp_path / "thief.onnx"))


def test_a_pickle_offered_as_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UnsafeModelFileError, match="pickle"):
        fitted(file=str(tmp_path / "model.onnx"))
