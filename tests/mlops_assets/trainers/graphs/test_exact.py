"""A graph that says anything else than the model is never written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlops_assets.trainers import SERVING_GRAPH, Trainer, load_predictor, native_predictor, trainer_named
from mlops_assets.trainers.graphs.exact import difference
from mlops_assets.trainers.graphs.graph import probes
from mlops_assets.trainers.graphs.trees import Forest


def rows(n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Columns of very different size, some values missing in two of them; y is above 0."""
    random = np.random.default_rng(1)
    x = random.normal(size=(n, 5)) * [1, 1e6, 1e-4, 1, 0] + [0, 0, 0, 1.7e9, 3]
    x = x.astype(np.float32)
    y = np.maximum(0.1, x[:, 0] + x[:, 1] / 1e6 + random.normal(size=n) * 0.3) * 10
    x[random.random(n) < 0.2, 1] = np.nan
    x[random.random(n) < 0.1, 2] = np.nan
    return x, y


def saved(trainer: Trainer, directory: Path) -> float:
    """How far the graph is from the library, on training rows and on probes of its own thresholds."""
    x, y = rows()
    target = (y > np.median(y)).astype(float) if trainer.task == "classification" else y
    model = trainer.fit(x, target, None, None, {}, 0)
    trainer.save(model, directory, x)
    assert (directory / SERVING_GRAPH).is_file()
    asked = np.concatenate([x, probes(trainer.graph(model).edges, 10_000, seed=2)])
    return difference(
        load_predictor(trainer.framework, directory), native_predictor(trainer.framework, directory), asked
    )


@pytest.mark.parametrize("objective", ["reg:squarederror", "reg:absoluteerror", "count:poisson", "reg:tweedie"])
def test_every_objective_of_xgboost_that_converts(objective: str, tmp_path: Path) -> None:
    """Its base score and its link are XGBoost's."""
    assert saved(trainer_named("XGBoostRegressor", n_estimators=40, objective=objective), tmp_path) < 5e-6


@pytest.mark.parametrize("objective", ["regression", "regression_l1", "poisson", "tweedie", "quantile", "huber"])
def test_every_objective_of_lightgbm_that_converts(objective: str, tmp_path: Path) -> None:
    """Thresholds that are doubles, a NaN that reads as 0, tiny values that read as 0: all as LightGBM has them."""
    assert saved(trainer_named("LightGBMRegressor", n_estimators=40, objective=objective), tmp_path) < 1e-12


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "poisson", "gamma"])
def test_every_loss_of_scikit_learn_that_converts(loss: str, tmp_path: Path) -> None:
    """Its baseline and its link are scikit-learn's."""
    assert saved(trainer_named("SklearnRegressor", max_iter=30, loss=loss), tmp_path) < 1e-12


@pytest.mark.parametrize("name", ["XGBoostClassifier", "LightGBMClassifier", "SklearnClassifier", "TorchRegressor"])
def test_columns_of_any_size_convert(name: str, tmp_path: Path) -> None:
    """Seconds since 1970 beside fractions of a thousandth."""
    assert saved(trainer_named(name), tmp_path) < 5e-6


@pytest.mark.parametrize("name", ["XGBoostClassifier", "LightGBMClassifier", "SklearnClassifier"])
def test_values_on_the_thresholds_go_where_the_library_sends_them(name: str, tmp_path: Path) -> None:
    """Small whole numbers, 0 and -0 among them: every value is a threshold, and splits are turned both ways."""
    random = np.random.default_rng(3)
    x = random.choice([-2, -1, -0.0, 0.0, 1, 2, np.nan], p=[0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05], size=(2000, 4))
    x = x.astype(np.float32)
    y = (np.nan_to_num(x).sum(axis=1) + random.normal(size=2000) > 0).astype(float)
    trainer = trainer_named(name)
    trainer.save(trainer.fit(x, y, None, None, {}, 0), tmp_path)
    assert (tmp_path / SERVING_GRAPH).is_file()
    served, native = (load(trainer.framework, tmp_path) for load in (load_predictor, native_predictor))
    assert difference(served, native, x) < 5e-6


def test_a_wrong_graph_is_dropped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A comparison that takes an equal value to the other side is found on the thresholds, and not written."""
    x, y = rows()
    trainer = trainer_named("XGBoostRegressor", n_estimators=10)
    model = trainer.fit(x, y, None, None, {}, 0)
    right = Forest.graph
    monkeypatch.setattr(Forest, "graph", lambda self: right(replace(self, question="<=")))
    with caplog.at_level(logging.WARNING):
        trainer.save(model, tmp_path)
    assert not (tmp_path / SERVING_GRAPH).exists() and "library serves" in caplog.text
    np.testing.assert_array_equal(load_predictor("xgboost", tmp_path)(x), model.inplace_predict(x).astype(float))


@pytest.mark.parametrize(
    ("trainer", "part"),
    [
        (trainer_named("XGBoostClassifier", n_estimators=5, booster="dart"), "dart"),
        (trainer_named("XGBoostRegressor", n_estimators=5, objective="survival:cox"), "survival:cox"),
        (trainer_named("LightGBMClassifier", n_estimators=1, min_data_in_leaf=10**6), "number of splits"),
    ],
    ids=repr,
)
def test_what_does_not_convert_is_served_by_its_library(
    trainer: Trainer, part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says what it is that does not."""
    x, y = rows(400)
    with caplog.at_level(logging.INFO):
        trainer.save(trainer.fit(x, (y > 5).astype(float), None, None, {}, 0), tmp_path)
    assert part in caplog.text and not (tmp_path / SERVING_GRAPH).exists()
    assert np.isfinite(load_predictor(trainer.framework, tmp_path)(x)).all()


def test_probes_stand_on_the_thresholds_and_on_both_sides() -> None:
    """A double between two float32 gives both, and what is missing is asked too."""
    threshold = np.array([0.1])
    (column,) = probes([threshold], 2000).T
    near = np.float32(0.1)
    wanted = {near, np.nextafter(near, np.float32(1)), np.nextafter(near, np.float32(-1))}
    assert wanted <= set(column.tolist()) and np.isnan(column).any()
    assert min(wanted) < 0.1 < max(wanted)
