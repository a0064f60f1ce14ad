"""A net that reads images: one artifact for every framework, its sizes checked before anything is fitted or read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets import Checkpoint
from mlops_assets.trainers import (
    SERVING_GRAPH,
    Classes,
    Trainer,
    TrainerParameterError,
    UnsafeModelFileError,
    load_predictor,
    native_predictor,
    trainer_named,
    trainers,
)
from mlops_assets.trainers.networks.network import Network
from mlops_assets.trainers.networks.preparation import Image, ImagePreparation

FRAMEWORKS = {"torch": "TorchImageClassifier", "mlx": "MLXImageClassifier"}
SIZES: list[tuple[Image, tuple[int, ...]]] = [((8, 8, 1), (4, 6)), ((9, 7, 3), (4,)), ((6, 5, 2), ())]
SMALL = {"image": (8, 8), "channels": (4,), "hidden": (8,), "epochs": 4, "batch_size": 32}
DIED = -signal.SIGKILL


def drawn(image: Image, channels: tuple[int, ...], seed: int = 0) -> tuple[Network, np.ndarray]:
    """A net with weights of chance, and images with some pixels and one whole image missing."""
    random = np.random.default_rng(seed)
    x = random.normal(5, 100, size=(300, int(np.prod(image)))).astype(np.float32)
    network = Network.drawn("multiclass", ImagePreparation.of(x, image), [8], seed, channels, outputs=5)
    x[::7, 1] = x[3] = np.nan
    return network, x


@pytest.mark.parametrize(("image", "channels"), SIZES, ids=str)
def test_every_framework_reads_the_same_images_alike(image: Image, channels: tuple[int, ...], tmp_path: Path) -> None:
    """Odd sizes and several channels too: torch, MLX and the graph tell the same shares, to 1e-5, and one class."""
    network, x = drawn(image, channels)
    trainer_named("TorchImageClassifier", image=image).save(network, tmp_path, x)
    assert (tmp_path / SERVING_GRAPH).is_file()
    predictors: list[Any] = [native_predictor(framework, tmp_path) for framework in FRAMEWORKS]
    predictors.append(load_predictor("torch", tmp_path))
    expected = predictors[0].shares(x)
    np.testing.assert_allclose(expected.sum(axis=1), 1)
    for one in predictors:
        assert isinstance(one, Classes)
        np.testing.assert_allclose(one.shares(x), expected, atol=1e-5)
        np.testing.assert_array_equal(one(x), expected.argmax(axis=1))


@pytest.mark.parametrize(("image", "channels"), SIZES, ids=str)
def test_what_is_written_is_read(image: Image, channels: tuple[int, ...], tmp_path: Path) -> None:
    network, _ = drawn(image, channels)
    network.write(tmp_path)
    again = Network.read(tmp_path)
    assert again.preparation.image == image and again.columns == network.columns and again.task == "multiclass"
    for one, other in zip(network.layers, again.layers, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
    again.write(tmp_path / "..")
    assert (tmp_path / ".." / "architecture.json").read_bytes() == (tmp_path / "architecture.json").read_bytes()


def test_a_shape_means_the_same_wherever_it_is() -> None:
    """All pixels of a channel are prepared alike, so that one edge is one edge anywhere; a missing one is the mean."""
    x = np.arange(24, dtype=np.float32).reshape(2, 12)  # two images of 2 by 3, of two channels
    x[0, 0] = np.nan
    prepared = ImagePreparation.of(x, (2, 3, 2))
    assert prepared.mean.shape == (2,)
    planes = prepared(x).reshape(2, 2, 2, 3)  # channel by channel
    np.testing.assert_allclose(planes[1, 0], (x[1, 0::2].reshape(2, 3) - prepared.mean[0]) / prepared.scale[0])
    assert planes[0, 0, 0, 0] == 0


CHANGES: list[dict[str, Any]] = [
    {"format": "tabular-net-1"},
    {"format": "image-net-2"},
    {"image": [8, 9, 1]},
    {"image": [64, 1, 1]},
    {"image": [8, 8]},
    {"image": 64},
    {"channels": [4, 6, 2, 2]},
    {"channels": [4, 7]},
    {"channels": "46"},
    {"classes": 6},
    {"classes": 0},
    {"task": "classification"},
    {"kernel": 5},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_architecture_in_other_words_is_refused(framework: str, change: dict[str, Any], tmp_path: Path) -> None:
    """Every word is one of ours and every tensor has the size that it says."""
    drawn((8, 8, 1), (4, 6))[0].write(tmp_path)
    path = tmp_path / "architecture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UnsafeModelFileError):
        load_predictor(framework, tmp_path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"image": ()}, r"'image' is \(\)\. Give height and width"),
    "one number": ({"image": (64,)}, "Give height and width"),
    "a word": ({"image": "8x8"}, "'image' is '8x8'. Give whole numbers"),
    "another size": ({"image": (8, 9)}, r"is \(8, 9, 1\), 72 numbers, and the rows have 64"),
    "too many halvings": ({"channels": (4, 4, 4, 4)}, r"\(8, 8\) is too small to be halved 4 times. Give fewer `chan"),
    "no channels of a layer": ({"channels": (4, 0)}, "'channels' is"),
}


@pytest.mark.parametrize(("params", "says"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", FRAMEWORKS.values())
def test_an_image_that_cannot_be_is_named(name: str, params: dict[str, Any], says: str) -> None:
    """Before anything is fitted; a table has no image at all."""
    x, y = np.zeros((10, 64), np.float32), np.arange(10.0)
    with pytest.raises(TrainerParameterError, match=says):
        trainer_named(name, **{**SMALL, **params}).fit(x, y, None, None, {}, 0)
    with pytest.raises(TrainerParameterError, match="'image' is not known"):
        trainer_named("TorchClassifier", image=(8, 8)).fit(x, y > 4, None, None, {}, 0)


@pytest.mark.parametrize("name", FRAMEWORKS.values())
def test_a_class_that_only_later_rows_hold_is_a_wrong_answer_and_no_crash(name: str) -> None:
    """It has its place in the net, which has never seen it; a label with a number for each row is refused."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 64)).astype(np.float32), np.arange(60.0) % 3
    trainer = trainer_named(name, **SMALL)
    network = trainer.fit(x, y, x[:9], np.full(9, 4.0), {}, 0)
    assert len(network.layers[-1].bias) == 5
    assert len(trainer.fit(x, y, x[:9], y[:9], {}, 0).layers[-1].bias) == 3
    with pytest.raises(TrainerParameterError, match="goes up to class 1000000"):
        trainer.fit(x, y * 500_000, None, None, {}, 0)


VICTIM = """
import json, os, signal, sys
from pathlib import Path
from mlops_assets.checkpoints import Progress
from mlops_assets.training import train

reached, calls = Progress.reached, iter(range(100))

def reach_and_die(self, *args, **kwargs):
    reached(self, *args, **kwargs)
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

Progress.reached = reach_and_die
train(json.loads(Path(sys.argv[1]).read_text()))
"""


def told_to(trainer: Trainer, rows: Path, out: Path) -> dict[str, Any]:
    """The arguments of a training of the digits' model by another trainer, with a checkpoint each epoch."""
    from mlops_assets.training import training_arguments
    from model_assets.vision.digit import digit

    model = digit.with_(trainer=trainer, checkpoint=Checkpoint(every=None, rounds=1))
    return training_arguments(model, datetime(2024, 1, 22, tzinfo=UTC), rows, out)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training set of the digits holds, up to the cutoff."""
    import polars as pl

    from feature_assets.vision.digits import all_digits, digits

    path = tmp_path_factory.mktemp("images") / "training_set.parquet"
    known = digits(all_digits().lazy()).filter(pl.col("label_known_at") <= datetime(2024, 1, 22, tzinfo=UTC))
    known.filter(
        pl.col("event_timestamp") >= datetime(2024, 1, 8, tzinfo=UTC) - timedelta(days=2)
    ).collect().write_parquet(path)
    return path


@pytest.mark.parametrize("name", FRAMEWORKS.values())
@pytest.mark.parametrize("moment", [1, 5], ids=["in the trial", "in the final fit"])
def test_a_killed_training_goes_on_to_the_same_model(name: str, moment: int, rows: Path, tmp_path: Path) -> None:
    """kill -9 after a checkpoint; whoever is given the same directory comes to the same files, to the byte."""
    from mlops_assets.training import train

    trainer = trainers()[name](**SMALL)
    whole = train(told_to(trainer, rows, tmp_path / "whole"))
    arguments = told_to(trainer, rows, tmp_path / "killed")
    told = tmp_path / "arguments.json"
    told.write_text(json.dumps(arguments))
    died = subprocess.run(
        [sys.executable, "-c", VICTIM, str(told), str(moment)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == DIED, died.stderr[-3000:]
    assert list((tmp_path / "killed" / "checkpoints").iterdir()) and not (tmp_path / "killed" / "bundle").exists()
    again = train(arguments)
    assert again["metrics"] == whole["metrics"]
    files = [{p.name: p.read_bytes() for p in Path(one["bundle"], "model").iterdir()} for one in (whole, again)]
    assert files[0] == files[1] and SERVING_GRAPH in files[0]
