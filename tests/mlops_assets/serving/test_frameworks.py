"""Every format from training to an answer over HTTP: one Bento each, all of them in one serving process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.input_schema import InputSchema
from mlops_assets.trainers import SERVING_GRAPH, Trainer, frameworks, native_predictor, trainer_named
from resources.bentos import BentoStore
from resources.releases import ReleaseStore

NET: Mapping[str, Any] = {"hidden": [8], "epochs": 5, "batch_size": 64}
TRAINERS: Mapping[str, Trainer] = {
    "xgboost": trainer_named("XGBoostClassifier", n_estimators=20),
    "lightgbm": trainer_named("LightGBMClassifier", n_estimators=20),
    "sklearn": trainer_named("SklearnClassifier", max_iter=20),
    "sklearn_linear": trainer_named("SklearnClassifier", model="linear"),
    "torch": trainer_named("TorchClassifier", **NET),
    "mlx": trainer_named("MLXClassifier", **NET),
    "keras": trainer_named("KerasClassifier", **NET),
    "net": trainer_named("NetClassifier", **NET),
    "federated": trainer_named("FederatedClassifier", **NET),
    "xgboost_dart": trainer_named("XGBoostClassifier", n_estimators=20, booster="dart"),  # has no graph
}
FORMATS = [*TRAINERS, "onnx"]


def elsewhere(path: Path) -> Trainer:
    """An ONNX file of a sum of six columns."""
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Where", ["missing", "nothing", "x"], ["whole"]),
        helper.make_node("MatMul", ["whole", "weights"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["share"]),
    ]
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("share", TensorProto.FLOAT, ["n", 1])],
        [
            numpy_helper.from_array(np.float32(0), "nothing"),
            numpy_helper.from_array(np.array([[1e-3], [0.1], [-2e-3], [1], [0.01], [0.05]], np.float32), "weights"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return trainer_named("OnnxClassifier", file=str(path))


@pytest.fixture(scope="module")
def bundles(make_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    trainers = {**TRAINERS, "onnx": elsewhere(tmp_path_factory.mktemp("elsewhere") / "sum.onnx")}
    return {name: make_bundle(3, f"formats/{name}", trainer=trainer) for name, trainer in trainers.items()}


@pytest.fixture(scope="module")
def client(
    bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, serving: Callable[..., Any]
) -> Iterator[httpx.Client]:
    """One process that serves them all, each from a Bento of its own."""
    root = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MLOPS_HOME": str(root), "MLOPS_ENV": "test", "BENTOML_DO_NOT_TRACK": "true"}.items():
            patch.setenv(name, value)
        for name, bundle in bundles.items():
            tag = BentoStore().build(bundle, f"formats/{name}", {"version": "1", "run_id": name})
            ReleaseStore().start_canary(f"formats/{name}", tag, "1", (100,), by="ada", why="a test")
        with serving({}, root / "server.log") as client:
            yield client


def asked(bundle: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """The golden rows as a request has them, and what the model's own library says of them."""
    golden = json.loads((bundle / "golden.json").read_text())
    schema = InputSchema.from_json(json.loads((bundle / "schema.json").read_text()))
    framework = json.loads((bundle / "manifest.json").read_text())["framework"]
    rows = [{"features": dict(zip(schema.names, row, strict=True))} for row in golden["rows"]]
    return rows, native_predictor(framework, bundle / "model")(schema.encode(golden["rows"]))


@pytest.mark.parametrize("name", FORMATS)
def test_the_endpoint_says_what_the_library_said(name: str, client: httpx.Client, bundles: dict[str, Path]) -> None:
    """Trained, saved, packed, served: the same predictions, rows together and one by one, to 1e-5 (1e-12 in double)."""
    rows, expected = asked(bundles[name])
    assert np.ptp(expected) > 0.01, "a model that says one thing of every row shows nothing"
    response = client.post(f"/formats/{name}/predict", json={"rows": rows})
    assert response.status_code == 200, response.text
    together = [answer["prediction"] for answer in response.json()["predictions"]]
    alone = [
        client.post(f"/formats/{name}/predict", json={"rows": [row]}).json()["predictions"][0]["prediction"]
        for row in rows[:5]
    ]
    exact = name in {"lightgbm", "sklearn", "sklearn_linear", "onnx", "xgboost_dart"}
    np.testing.assert_allclose(together, expected, atol=1e-12 if exact else 1e-5, rtol=0)
    np.testing.assert_allclose(alone, expected[:5], atol=1e-7 if exact else 1e-5, rtol=0)


@pytest.mark.parametrize("name", FORMATS)
def test_a_bento_needs_only_what_answers(name: str, client: httpx.Client, bundles: dict[str, Path]) -> None:
    """With a graph, ONNX Runtime alone; the training library where there is none."""
    (tag,) = BentoStore().list(f"formats/{name}")
    needed = (BentoStore().path(tag).parents[1] / "env" / "python" / "requirements.txt").read_text()
    graph = (bundles[name] / "model" / SERVING_GRAPH).is_file()
    assert graph is (name not in {"xgboost_dart", "onnx"})
    libraries = {"xgboost", "lightgbm", "scikit-learn", "skops", "torch", "mlx", "keras"}
    packed = {library for library in libraries if f"\n{library}==" in f"\n{needed}"}
    assert packed == ({"xgboost"} if name == "xgboost_dart" else set())
    assert ("onnxruntime==" in needed) is (graph or name == "onnx")


def test_every_framework_is_among_them() -> None:
    """A new file under trainers/ is served here too."""
    assert {trainer.framework for trainer in TRAINERS.values()} | {"onnx"} == set(frameworks())
