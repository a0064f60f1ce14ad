"""What every trainer must keep; a new one is covered as soon as its file exists."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlops_assets.trainers import (
    SERVING_GRAPH,
    Trainer,
    TrainerParameterError,
    UnknownTrainerError,
    UnsafeModelFileError,
    frameworks,
    load_predictor,
    native_predictor,
    trainer_named,
    trainers,
)
from mlops_assets.trainers.graphs.exact import difference
from mlops_assets.trainers.graphs.graph import probes
from mlops_assets.trainers.networks.fitting import NetTrainer
from resources.hardware import Device, NoSuchDeviceError, this_machine

pytestmark = pytest.mark.slow

NET = {"hidden": [16], "epochs": 12, "learning_rate": 0.01, "batch_size": 64}
SMALL: dict[str, dict[str, Any]] = {
    "xgboost": {"n_estimators": 20},
    "lightgbm": {"n_estimators": 20},
    "sklearn": {"max_iter": 20},
    "torch": NET,
    "mlx": NET,
    "keras": NET,
    "net": NET,
    "federated": NET,
}
IMAGE = {**NET, "image": [2, 2], "channels": [8], "learning_rate": 0.03}  # the four columns of a row as its pixels
ELSEWHERE = TemporaryDirectory(prefix="trained-elsewhere-")  # removed when the tests end


def elsewhere(name: str) -> dict[str, str]:
    """A model that nobody here trained: a weighted sum of the columns, missing ones 0, as an ONNX file."""
    classifies = name == "OnnxClassifier"
    nodes = [
        helper.make_node("IsNaN", ["rows"], ["missing"]),
        helper.make_node("Where", ["missing", "nothing", "rows"], ["whole"]),
        helper.make_node("MatMul", ["whole", "weights"], ["sum"]),
        helper.make_node("Sigmoid" if classifies else "Identity", ["sum"], ["told"]),
    ]
    weights = np.array([[3.0], [1.5], [0.0], [0.0]] if classifies else [[1.0], [0.5], [0.0], [0.0]], np.float32)
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 4])],
        [helper.make_tensor_value_info("told", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.float32(0), "nothing")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = Path(ELSEWHERE.name, f"{name}.onnx")
    path.write_bytes(model.SerializeToString())
    return {"file": str(path)}


def settings(kind: type[Trainer]) -> dict[str, Any]:
    framework = kind.__module__.rpartition(".")[2]
    if kind.task == "multiclass":
        return IMAGE
    return elsewhere(kind.__name__) if framework == "onnx" else SMALL.get(framework, {})


def name_of(trainer: Trainer) -> str:
    """Without the path of a file, which is another one on another worker."""
    return f"{type(trainer).__name__}-{trainer.params.get('model', '')}".rstrip("-")


SUBJECTS = [kind(**settings(kind)) for kind in trainers().values()]
SUBJECTS += [trainer_named(name, model="linear") for name in ("SklearnClassifier", "SklearnRegressor")]
every_trainer = pytest.mark.parametrize("trainer", SUBJECTS, ids=name_of)
GRAPHS = [trainer for trainer in SUBJECTS if trainer.framework != "onnx"]  # that one has a graph to begin with


def rows(task: str, n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A learnable problem with missing values; the last column is always missing."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 4)).astype(np.float32)
    y = x[:, 0] + 0.5 * x[:, 1] + random.normal(scale=0.2, size=n)
    x[random.random(x.shape) < 0.1] = np.nan
    x[:, 3] = np.nan
    if task == "multiclass":
        return x, np.digitize(y, [-0.7, 0.7]).astype(np.float64)
    return x, (y > 0).astype(np.float64) if task == "classification" else y


def fitted(trainer: Trainer, seed: int = 3):
    return trainer.fit(*rows(trainer.task), *rows(trainer.task, 200, seed=1), {}, seed)


def predictions(trainer: Trainer, directory: Path, seed: int = 3) -> np.ndarray:
    trainer.save(fitted(trainer, seed), directory)
    return load_predictor(trainer.framework, directory)(rows(trainer.task)[0])


@every_trainer
def test_a_saved_model_predicts_what_was_learned(trainer: Trainer, tmp_path: Path) -> None:
    """After save and load, the model knows the problem: float64 of shape (n,), NaN accepted, all finite."""
    _, y = rows(trainer.task)
    guess = predictions(trainer, tmp_path)
    assert guess.shape == y.shape and guess.dtype == np.float64 and np.isfinite(guess).all()
    assert np.corrcoef(guess, y)[0, 1] > 0.6
    if trainer.task == "classification":
        assert guess.min() >= 0 and guess.max() <= 1


@every_trainer
def test_one_row_equals_the_same_row_among_many(trainer: Trainer, tmp_path: Path) -> None:
    """Serving predicts row by row, judging in bulk: both give one answer, to the rounding of float32."""
    bulk = predictions(trainer, tmp_path)
    predict = load_predictor(trainer.framework, tmp_path)
    x = rows(trainer.task)[0]
    np.testing.assert_allclose([predict(x[at : at + 1])[0] for at in range(20)], bulk[:20], rtol=1e-6, atol=1e-7)


@every_trainer
def test_saving_twice_gives_equal_predictions(trainer: Trainer, tmp_path: Path) -> None:
    """Saving does not change a model: a second file of the same model predicts the same."""
    model = fitted(trainer)
    x = rows(trainer.task)[0]
    for name in ("first", "second"):
        trainer.save(model, tmp_path / name)
    first, second = (load_predictor(trainer.framework, tmp_path / name)(x) for name in ("first", "second"))
    np.testing.assert_array_equal(first, second)


@every_trainer
def test_the_same_seed_gives_the_same_model(trainer: Trainer, tmp_path: Path) -> None:
    """Two trainings with one seed predict bit for bit alike."""
    np.testing.assert_array_equal(predictions(trainer, tmp_path / "a"), predictions(trainer, tmp_path / "b"))


@every_trainer
def test_the_same_seed_gives_the_same_files(trainer: Trainer, tmp_path: Path) -> None:
    """To the byte: a model made again is known by its hash, and one saved twice is stored once."""
    for place in ("one", "other"):
        trainer.save(fitted(trainer), tmp_path / place)
    files = [{path.name: path.read_bytes() for path in (tmp_path / place).iterdir()} for place in ("one", "other")]
    assert files[0] == files[1]


@every_trainer
def test_what_early_stopping_learned_can_be_fixed(trainer: Trainer) -> None:
    """The learned parameters are accepted by a fit without validation rows, and hold there."""
    learned = trainer.learned(fitted(trainer))
    again = trainer.fit(*rows(trainer.task), None, None, learned, 3)
    assert trainer.learned(again) == learned


@pytest.mark.parametrize("trainer", [one for one in SUBJECTS if "cuda" in one.accelerators], ids=name_of)
@pytest.mark.skipif("cuda" in this_machine().devices, reason="this machine has a GPU")
def test_a_device_is_used_or_refused(trainer: Trainer) -> None:
    """One that the driver names and the library cannot use ends the fit: none falls back and says nothing of it."""
    gpu = Device("cuda", "a GPU that is not there", 80.0)
    with pytest.raises((NoSuchDeviceError, AssertionError, RuntimeError), match=r"(?i)cuda"):
        trainer.fit(*rows(trainer.task), None, None, {}, 0, device=gpu)


@every_trainer
def test_importance_has_a_number_for_each_column(trainer: Trainer) -> None:
    """Where it is known, the column that decides comes first and an empty one counts nothing."""
    importance = trainer.importance(fitted(trainer))
    assert importance == [] or (len(importance) == 4 and importance.index(max(importance)) == 0 and importance[3] == 0)


@pytest.mark.parametrize("trainer", GRAPHS, ids=name_of)
def test_the_graph_says_what_the_library_says(trainer: Trainer, tmp_path: Path) -> None:
    """On every threshold, a float beside it, missing and extreme values: to 5e-6, and 1e-12 where both use doubles."""
    model = fitted(trainer)
    trainer.save(model, tmp_path)
    x = np.concatenate([probes(trainer.graph(model).edges, 20_000, seed=5), rows(trainer.task)[0]])
    told = difference(load_predictor(trainer.framework, tmp_path), native_predictor(trainer.framework, tmp_path), x)
    assert told < (1e-12 if trainer.framework in {"lightgbm", "sklearn"} else 5e-6)


@every_trainer
def test_nothing_saved_is_a_pickle(trainer: Trainer, tmp_path: Path) -> None:
    """No file, nor a member of an archive, starts as a pickle or contains a pickled object array."""
    trainer.save(fitted(trainer), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert not path.read_bytes().startswith(b"\x80")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [archive.read(name) for name in archive.namelist()]
            assert not any(member.startswith(b"\x80") or b"'|O'" in member[:200] for member in members)


class Bomb:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@every_trainer
@pytest.mark.parametrize("protocol", [0, 5])
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "native"])
def test_a_pickle_offered_as_a_model_is_refused(trainer: Trainer, tmp_path: Path, protocol: int, graph: bool) -> None:
    """A pickle under a model file's name is refused before a byte of it runs, with the graph there or not."""
    trainer.save(fitted(trainer), tmp_path / "model")
    if not graph:
        (tmp_path / "model" / SERVING_GRAPH).unlink(missing_ok=True)
    for file in sorted((tmp_path / "model").iterdir()):
        whole = file.read_bytes()
        file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=protocol))
        with pytest.raises(UnsafeModelFileError, match=file.name):
            load_predictor(trainer.framework, tmp_path / "model")
        file.write_bytes(whole)
    assert not (tmp_path / "exploded").exists()


@every_trainer
@pytest.mark.parametrize("graph", [True, False], ids=["graph", "native"])
def test_a_truncated_model_is_refused(trainer: Trainer, tmp_path: Path, graph: bool) -> None:
    """Half a file is an error that names it, never a model that predicts something else."""
    trainer.save(fitted(trainer), tmp_path)
    if not graph:
        (tmp_path / SERVING_GRAPH).unlink(missing_ok=True)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UnsafeModelFileError, match=file.name):
            load_predictor(trainer.framework, tmp_path)
        file.write_bytes(whole)


@pytest.mark.parametrize("trainer", {trainer.framework: trainer for trainer in SUBJECTS}.values(), ids=name_of)
def test_a_model_loads_in_a_process_that_never_trained(trainer: Trainer, tmp_path: Path) -> None:
    """A fresh process predicts the same without Dagster, and without any library that trains."""
    expected = predictions(trainer, tmp_path / "model")
    np.save(tmp_path / "x.npy", rows(trainer.task)[0])
    blocked = ["dagster", "mlflow", "optuna", "xgboost", "lightgbm", "sklearn", "skops", "torch", "mlx", "keras"]
    blocked += ["onnx"] if trainer.framework != "onnx" else []
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from pathlib import Path
import numpy as np
from mlops_assets.trainers import load_predictor
root = Path({str(tmp_path)!r})
np.save(root / "y.npy", load_predictor({trainer.framework!r}, root / "model")(np.load(root / "x.npy")))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)


@every_trainer
def test_a_trainer_is_a_value(trainer: Trainer) -> None:
    """Equal by class and parameters, hashable, rebuilt by its name, and its repr reads as it was written."""
    twin = trainer_named(type(trainer).__name__, **trainer.params)
    assert twin == trainer and hash(twin) == hash(trainer) and twin is not trainer
    other = {"epochs": 77} if isinstance(trainer, NetTrainer) else {"alpha": 1.0}
    assert trainer != trainer_named(type(trainer).__name__, **{**trainer.params, **other})
    assert eval(repr(trainer), dict(trainers())) == trainer
    assert pickle.loads(pickle.dumps(trainer)) == trainer


@every_trainer
def test_an_unknown_parameter_is_named(trainer: Trainer) -> None:
    """A misspelt parameter is an error when fitting, not a silent default."""
    with pytest.raises(TrainerParameterError, match="max_dept'"):
        trainer.fit(*rows(trainer.task), None, None, {"max_dept": 3}, 0)


def test_unknown_names_say_what_exists(tmp_path: Path) -> None:
    """An unknown trainer or framework lists the known ones; a path is never imported."""
    with pytest.raises(UnknownTrainerError, match=r"CatBoost.*XGBoostClassifier"):
        trainer_named("CatBoost")
    with pytest.raises(UnknownTrainerError, match="xgboost"):
        load_predictor("os", tmp_path)
    assert {"lightgbm", "sklearn", "xgboost"} <= set(frameworks())


def test_a_parameter_must_be_writable_as_json() -> None:
    """Objects and functions are refused where they are declared."""
    with pytest.raises(TrainerParameterError, match=r"objective.*function"):
        trainer_named("XGBoostClassifier", objective=lambda: None)


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    """The error gives the path and what the directory holds."""
    (tmp_path / "other.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"model\.ubj.*other\.bin"):
        load_predictor("xgboost", tmp_path)


def test_a_type_that_no_trainer_writes_is_refused(tmp_path: Path) -> None:
    """skops trusts every estimator of scikit-learn; our list holds only what our trainers write."""
    import skops.io
    from sklearn.naive_bayes import GaussianNB

    skops.io.dump(GaussianNB().fit([[0.0], [1.0]], [0, 1]), tmp_path / "model.skops")
    with pytest.raises(UnsafeModelFileError, match="GaussianNB"):
        load_predictor("sklearn", tmp_path)


def test_declaring_a_trainer_imports_no_framework() -> None:
    """Definitions hold trainers: naming one must not import what it trains with."""
    heavy = {"numpy", "xgboost", "lightgbm", "sklearn", "torch", "mlx", "keras", "onnx", "onnxruntime", "dagster"}
    code = (
        "import sys; from mlops_assets.trainers import XGBoostClassifier, trainer_named;"
        "trainer_named('LightGBMRegressor'); XGBoostClassifier(max_depth=3);"
        f"sys.exit(bool({heavy!r} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
