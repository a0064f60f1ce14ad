"""The artifact of a net: sizes in JSON and tensors in safetensors, and nothing that could run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.trainers import (
    SERVING_GRAPH,
    TrainerParameterError,
    UnsafeModelFileError,
    load_predictor,
    native_predictor,
    trainer_named,
)
from mlops_assets.trainers.networks.network import Network, Preparation

FRAMEWORKS = {"torch": "TorchClassifier", "mlx": "MLXClassifier", "keras": "KerasClassifier"}


@pytest.fixture
def network() -> Network:
    x = np.random.default_rng(0).normal(5, 100, size=(300, 3)).astype(np.float32)
    return Network.drawn("classification", Preparation.fit(x), [8, 4], seed=0)


def test_what_is_written_is_read(network: Network, tmp_path: Path) -> None:
    network.write(tmp_path)
    again = Network.read(tmp_path)
    assert (again.task, again.columns, len(again.layers)) == ("classification", 3, 3)
    for one, other in zip(network.layers, again.layers, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)


def test_every_framework_reads_the_same_net_alike(network: Network, tmp_path: Path) -> None:
    """One artifact, three libraries, and the graph: the same answers, so that none has a format of its own."""
    network.write(tmp_path)
    x = np.random.default_rng(1).normal(5, 200, size=(400, 3)).astype(np.float32)
    x[::7, 1] = np.nan
    first, *others = [native_predictor(framework, tmp_path)(x) for framework in FRAMEWORKS]
    for other in others:
        np.testing.assert_allclose(other, first, atol=2e-6)
    trainer = trainer_named("TorchClassifier")
    trainer.save(network, tmp_path)
    assert (tmp_path / SERVING_GRAPH).is_file()
    np.testing.assert_allclose(load_predictor("torch", tmp_path)(x), first, atol=2e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "tabular-net-2"},
        {"activation": "lambda"},
        {"hidden": [8, 5]},
        {"hidden": [8, -4]},
        {"hidden": ["8", 4]},
        {"task": "ranking"},
        {"module": "os"},
    ],
    ids=str,
)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_architecture_in_other_words_is_refused(
    network: Network, tmp_path: Path, framework: str, change: dict[str, Any]
) -> None:
    """Every word is one of ours and every tensor has the size that it says."""
    network.write(tmp_path)
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsafeModelFileError):
        load_predictor(framework, tmp_path)


def test_a_keras_archive_with_a_lambda_layer_is_refused(network: Network, tmp_path: Path) -> None:
    """The Python that such a layer carries is never looked at."""
    from mlops_assets.trainers.keras import _keras

    keras, exploded = _keras(), tmp_path / "exploded"
    text = str(exploded)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: (open(text, "w").close(), x)[1])])  # noqa: PTH123
    exploded.unlink(missing_ok=True)
    network.write(tmp_path)
    for name in ("model.safetensors", "architecture.json"):
        whole = (tmp_path / name).read_bytes()
        model.save(tmp_path / "lambda.keras")
        (tmp_path / "lambda.keras").rename(tmp_path / name)
        with pytest.raises(UnsafeModelFileError, match=name):
            load_predictor("keras", tmp_path)
        (tmp_path / name).write_bytes(whole)
    assert not exploded.exists()


def test_a_torch_file_is_refused(network: Network, tmp_path: Path) -> None:
    """torch.save writes a pickle in an archive."""
    import torch

    network.write(tmp_path)
    torch.save({"mean": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsafeModelFileError, match=r"model\.safetensors"):
        load_predictor("torch", tmp_path)


def test_preparation_is_measured_where_there_is_something(tmp_path: Path) -> None:
    """Missing values count nothing; a column that is empty or constant is 0; far out is held at ten deviations."""
    nan = np.nan
    x = np.array([[1, nan, 7, nan], [3, nan, 7, 4], [nan, nan, 7, 8]], dtype=np.float32)
    prepared = Preparation.fit(x)(np.vstack([x, [1e30, 1, 7, nan]]).astype(np.float32))
    values, missing = prepared[:, :4], prepared[:, 4:]
    np.testing.assert_allclose(values[:3, 0], [-1, 1, 0])
    assert (values[:3, [1, 2]] == 0).all() and values[3, 0] == 10 and np.isfinite(prepared).all()
    np.testing.assert_array_equal(missing[:3], np.isnan(x))


@pytest.mark.parametrize("name", FRAMEWORKS.values())
def test_fitting_stops_when_validation_no_longer_improves(name: str) -> None:
    """On noise it stops early, and keeps the weights of its best epoch."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 4)).astype(np.float32), (random.random(200) > 0.5).astype(float)
    trainer = trainer_named(name, hidden=[64], learning_rate=0.05, epochs=60, patience=3, batch_size=32)
    learned = trainer.learned(trainer.fit(x, y, *(random.permutation(part) for part in (x, y)), {}, 0))
    assert 1 <= learned["epochs"] < 30


@pytest.mark.parametrize(
    "params", [{"hidden": [16, 0]}, {"hidden": [1.5]}, {"epochs": 0}, {"batch_size": "8"}], ids=str
)
def test_sizes_are_whole_numbers(params: dict[str, Any]) -> None:
    """A parameter of no sense is named before anything is fitted."""
    x = np.zeros((10, 2), np.float32)
    with pytest.raises(TrainerParameterError, match=next(iter(params))):
        trainer_named("TorchRegressor", **params).fit(x, x[:, 0], None, None, {}, 0)
