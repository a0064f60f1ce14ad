"""What a graph file may be, and what is refused before it answers."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.trainers import SERVING_GRAPH, UnsafeModelFileError, load_predictor, trainer_named


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)


@pytest.fixture
def directory(tmp_path: Path, rows: np.ndarray) -> Path:
    """A small booster with its graph."""
    trainer = trainer_named("XGBoostClassifier", n_estimators=5)
    trainer.save(trainer.fit(rows, (rows[:, 0] > 0).astype(float), None, None, {}, 0), tmp_path / "model")
    assert (tmp_path / "model" / SERVING_GRAPH).is_file()
    return tmp_path / "model"


def changed(directory: Path, change: object) -> None:
    path = directory / SERVING_GRAPH
    model = onnx.load_model_from_string(path.read_bytes())
    change(model)  # type: ignore[operator]
    path.write_bytes(model.SerializeToString())


def test_weights_in_another_file_are_refused(directory: Path, rows: np.ndarray) -> None:
    """A graph may not make ONNX Runtime read a file of its choosing."""

    def point_elsewhere(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.zeros(4), "stolen")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../../etc/passwd")
        model.graph.initializer.append(tensor)

    changed(directory, point_elsewhere)
    with pytest.raises(UnsafeModelFileError, match="names another file"):
        load_predictor("xgboost", directory)


def test_an_operator_of_another_library_is_refused(directory: Path) -> None:
    """Operators that ONNX Runtime does not have would have to be loaded as code."""

    def add_operator(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Launch", ["x"], ["z"], domain="evil"))
        model.opset_import.append(helper.make_opsetid("evil", 1))

    changed(directory, add_operator)
    with pytest.raises(UnsafeModelFileError, match="Launch"):
        load_predictor("xgboost", directory)


def test_a_pickle_under_the_graph_s_name_is_refused(directory: Path) -> None:
    (directory / SERVING_GRAPH).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeModelFileError, match="a pickle"):
        load_predictor("xgboost", directory)


def test_a_graph_answers_only_beside_the_model_it_was_made_from(directory: Path, rows: np.ndarray) -> None:
    """Two trainings never mix: neither another model's file, nor none, nor a graph that does not say."""
    other = trainer_named("XGBoostClassifier", n_estimators=6)
    other.write(other.fit(rows, (rows[:, 1] > 0).astype(float), None, None, {}, 0), directory)
    with pytest.raises(UnsafeModelFileError, match=r"model\.ubj.*other bytes"):
        load_predictor("xgboost", directory)
    (directory / "model.ubj").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.ubj"):
        load_predictor("xgboost", directory)
    changed(directory, lambda model: model.ClearField("metadata_props"))
    with pytest.raises(UnsafeModelFileError, match="what it was made from"):
        load_predictor("xgboost", directory)


def test_saving_again_leaves_no_graph_of_before(directory: Path, rows: np.ndarray) -> None:
    """A model that does not convert does not inherit the graph of the one it replaces."""
    trainer = trainer_named("XGBoostClassifier", n_estimators=5, booster="dart")
    trainer.save(trainer.fit(rows, (rows[:, 0] > 0).astype(float), None, None, {}, 0), directory)
    assert not (directory / SERVING_GRAPH).exists()
    assert load_predictor("xgboost", directory)(rows).shape == (500,)


def test_few_rows_and_many_are_answered_alike_from_any_thread(directory: Path, rows: np.ndarray) -> None:
    """Row by row, all at once, eight callers together: the same numbers."""
    predict = load_predictor("xgboost", directory)
    one_by_one = np.concatenate([predict(rows[at : at + 1]) for at in range(len(rows))])
    np.testing.assert_allclose(predict(rows), one_by_one, rtol=1e-14)
    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(predict, [rows] * 40):
            np.testing.assert_allclose(answer, one_by_one, rtol=1e-14)


def test_any_layout_of_the_matrix_gives_the_same_answer(directory: Path, rows: np.ndarray) -> None:
    """Columns first, or every second row of something larger, as numpy hands them on."""
    predict = load_predictor("xgboost", directory)
    np.testing.assert_array_equal(predict(np.asfortranarray(rows)), predict(rows))
    np.testing.assert_array_equal(predict(rows[::2]), predict(rows)[::2])


def test_a_matrix_of_another_width_is_an_error(directory: Path, rows: np.ndarray) -> None:
    """Never an answer from the wrong columns."""
    with pytest.raises(Exception, match=r"(?i)dimension"):
        load_predictor("xgboost", directory)(rows[:, :2])


def test_the_graph_says_what_it_was_made_from(directory: Path) -> None:
    """The native file and its hash stand in the graph's own metadata."""
    model = onnx.load_model_from_string((directory / SERVING_GRAPH).read_bytes())
    (made_from,) = [entry.value for entry in model.metadata_props if entry.key == "made_from"]
    assert list(json.loads(made_from)) == ["model.ubj"]
