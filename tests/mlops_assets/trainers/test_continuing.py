"""A fit that was broken off goes on to the very model that it would have been, or starts over; never to another one."""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlops_assets.checkpoints import NO_CHECKPOINTS, OtherCheckpointError, Progress
from mlops_assets.trainers import Trainer, load_predictor, trainer_named, trainers

NET = {"hidden": [8], "epochs": 12, "learning_rate": 0.01, "batch_size": 64}
BOOSTED = {"n_estimators": 40, "learning_rate": 0.2}
BAGGED = {"bagging_fraction": 0.7, "bagging_freq": 3, "feature_fraction": 0.6, "extra_trees": True}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("XGBoostClassifier", BOOSTED),
    ("XGBoostRegressor", {**BOOSTED, "objective": "reg:absoluteerror"}),
    ("XGBoostClassifier", {**BOOSTED, "subsample": 0.6, "colsample_bytree": 0.7, "colsample_bynode": 0.7}),
    ("XGBoostClassifier", {**BOOSTED, "booster": "dart", "subsample": 0.8}),
    ("XGBoostClassifier", {**BOOSTED, "eval_metric": "auc", "early_stopping_rounds": 5}),
    ("LightGBMClassifier", BOOSTED),
    ("LightGBMRegressor", {**BOOSTED, "objective": "regression_l1"}),
    ("LightGBMClassifier", {**BOOSTED, **BAGGED}),
    ("LightGBMClassifier", {"num_iterations": 40, "subsample": 0.8, "subsample_freq": 1, "early_stopping_rounds": 4}),
    *((f"{kind}ImageClassifier", {**NET, "image": [2, 3], "channels": [4]}) for kind in ("Torch", "MLX", "Net")),
    *(
        (f"{kind}{task}", NET)
        for kind in ("Torch", "MLX", "Keras", "Net", "Federated")
        for task in ("Classifier", "Regressor")
    ),
]
cases = pytest.mark.parametrize(
    ("name", "params"), CASES, ids=[f"{name}-{'-'.join(map(str, params.values()))}" for name, params in CASES]
)
STARTING_OVER: list[tuple[str, dict[str, Any]]] = [
    ("LightGBMClassifier", {**BOOSTED, "data_sample_strategy": "goss"}),
    ("LightGBMClassifier", {**BOOSTED, "boosting": "dart"}),
    ("LightGBMClassifier", {**BOOSTED, "use_quantized_grad": True}),
    ("SklearnClassifier", {"max_iter": 10}),
    ("SklearnRegressor", {"model": "linear"}),
]


class BrokenOffError(Exception):
    """The fit ended here."""


class Breaking(Progress):
    """Writes its checkpoints and ends the fit at the second of them, as if the process had died there."""

    written = 0

    def reached(self, rounds: int, model: Callable[[], bytes], **notes: Any) -> None:
        due = self._due(rounds)
        super().reached(rounds, model, **notes)
        self.written += due
        if self.written == 2:
            raise BrokenOffError


def rows(task: str, n: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A learnable problem with missing values, and values that repeat."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 6)).astype(np.float32)
    y = x[:, 0] + x[:, 1] * x[:, 2] + random.normal(scale=0.5, size=n)
    x[random.random(x.shape) < 0.1] = np.nan
    x[:, 4] = np.round(x[:, 4])
    if task == "multiclass":
        return x, np.digitize(y, [-0.7, 0.7]).astype(np.float64)
    return x, (y > 0).astype(np.float64) if task == "classification" else y


def fit(trainer: Trainer, progress: Progress = NO_CHECKPOINTS, judged: bool = True) -> Any:
    valid = rows(trainer.task, 200, seed=1) if judged else (None, None)
    return trainer.fit(*rows(trainer.task), *valid, {}, 3, progress)


def progress_in(path: Path, kind: type[Progress] = Progress, made_from: Any = "these rows", every: int = 3) -> Progress:
    return kind(path / "a.checkpoint", made_from, seconds=None, rounds=every)


def written(trainer: Trainer, model: Any, directory: Path) -> dict[str, bytes]:
    """The files of a model."""
    directory.mkdir()
    trainer.write(model, directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@cases
@pytest.mark.parametrize("judged", [True, False], ids=["early stopping", "all rounds"])
def test_a_continued_fit_is_the_uninterrupted_one(
    name: str, params: dict[str, Any], judged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """BrokenOffError off at its second checkpoint and gone on from there, its files are equal to the byte."""
    trainer = trainer_named(name, **params)
    whole = written(trainer, fit(trainer, judged=judged), tmp_path / "whole")
    with pytest.raises(BrokenOffError):
        fit(trainer, progress_in(tmp_path, Breaking), judged)
    with caplog.at_level(logging.INFO, logger="mlops_assets"):
        continued = fit(trainer, progress_in(tmp_path), judged)
    assert any(line.startswith("continuing a after ") for line in caplog.messages)
    assert written(trainer, continued, tmp_path / "continued") == whole


@cases
def test_checkpoints_do_not_change_the_model(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    """Neither writing them, nor how often they are written."""
    trainer = trainer_named(name, **params)
    without = written(trainer, fit(trainer), tmp_path / "without")
    (tmp_path / "kept").mkdir()
    assert written(trainer, fit(trainer, progress_in(tmp_path / "kept", every=1)), tmp_path / "each") == without
    assert (tmp_path / "kept" / "a.checkpoint").is_file()


@pytest.mark.parametrize(("name", "params"), STARTING_OVER, ids=lambda item: str(item)[:40])
def test_a_fit_that_cannot_be_continued_keeps_no_checkpoint(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    """It starts over, and predicts to the bit what it did."""
    trainer, x = trainer_named(name, **params), rows("classification")[0]
    for place in ("one", "other"):
        trainer.save(fit(trainer, progress_in(tmp_path, Breaking)), tmp_path / place)
    one, other = (load_predictor(trainer.framework, tmp_path / place)(x) for place in ("one", "other"))
    np.testing.assert_array_equal(one, other)
    assert not (tmp_path / "a.checkpoint").exists()


def test_every_trainer_is_named_here() -> None:
    """A new one must say whether it can be continued; one that is given as a file learns nothing."""
    assert {name for name, _ in CASES + STARTING_OVER} == {name for name in trainers() if not name.startswith("Onnx")}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda content: content[:-10], "another hash"),
        (lambda content: content.replace(b'"checkpoint-1"', b'"checkpoint-0"'), "format checkpoint-1"),
        (lambda content: b"\x80\x05" + content, "no JSON"),
        (lambda _: b"", "no JSON"),
        (lambda _: b"[]\n", "format checkpoint-1"),
    ],
    ids=["cut", "another format", "a pickle", "empty", "a list"],
)
def test_a_damaged_checkpoint_is_ignored_by_name(
    spoil: Callable[[bytes], bytes], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The fit starts over and comes to the same model; the log says what was wrong."""
    trainer = trainer_named("XGBoostClassifier", **BOOSTED)
    whole = written(trainer, fit(trainer), tmp_path / "whole")
    with pytest.raises(BrokenOffError):
        fit(trainer, progress_in(tmp_path, Breaking))
    path = tmp_path / "a.checkpoint"
    path.write_bytes(spoil(path.read_bytes()))
    assert written(trainer, fit(trainer, progress_in(tmp_path)), tmp_path / "again") == whole
    (told,) = [line for line in caplog.messages if "is ignored" in line]
    assert "a.checkpoint" in told and words in told


ANOTHER = [("XGBoostClassifier", BOOSTED), ("LightGBMClassifier", BOOSTED), ("TorchClassifier", NET)]
ANOTHER += [("TorchClassifier", {**NET, "workers": 2}), ("MLXClassifier", NET), ("KerasClassifier", NET)]


@pytest.mark.parametrize(("name", "params"), ANOTHER, ids=[f"{name}-{len(params)}" for name, params in ANOTHER])
def test_a_checkpoint_of_another_model_is_refused(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    """Before a round of work, and it is left as it lies: a model of two halves would be nobody's."""
    with pytest.raises(BrokenOffError):
        fit(trainer_named("XGBoostRegressor", **BOOSTED), progress_in(tmp_path, Breaking))
    path = tmp_path / "a.checkpoint"
    before = path.read_bytes()
    with pytest.raises(OtherCheckpointError, match=r"a\.checkpoint is of another model"):
        fit(trainer_named(name, **params), progress_in(tmp_path, made_from="other rows"))
    assert path.read_bytes() == before


def test_a_full_disk_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that cannot be written is told and left out, and nothing of it stays; the model is the same."""
    trainer = trainer_named("XGBoostClassifier", **BOOSTED)
    whole = written(trainer, fit(trainer), tmp_path / "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        model = fit(trainer, progress_in(tmp_path / "full", every=10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert sum("could not be written" in line for line in caplog.messages) == 4
    assert not list((tmp_path / "full").iterdir())
    assert written(trainer, model, tmp_path / "model") == whole


def test_a_checkpoint_is_due_by_rounds_or_by_time(tmp_path: Path) -> None:
    """Whichever comes first, counted from the last one; without either never."""
    by_rounds, by_time = Progress(tmp_path / "r", {}, None, 3), Progress(tmp_path / "t", {}, 0.0, None)
    never = Progress(tmp_path / "n", {}, None, None)
    found: dict[str, list[int]] = {"r": [], "t": [], "n": []}
    for done in range(1, 8):
        for one in (by_rounds, by_time, never):
            assert one.path is not None
            one.path.unlink(missing_ok=True)
            one.reached(done, lambda: b"model")
            found[one.path.name] += [done] if one.path.exists() else []
    assert found == {"r": [3, 6], "t": [1, 2, 3, 4, 5, 6, 7], "n": []}
