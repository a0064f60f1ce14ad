"""PyTorch's own parameters: on what a net is fitted, and in what precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mlops_assets.trainers import trainer_named
from mlops_assets.trainers.networks.fitting import Problem, Settings
from mlops_assets.trainers.networks.network import Network
from mlops_assets.trainers.networks.preparation import Preparation
from mlops_assets.trainers.torch import TorchLearner
from resources.hardware import CPU

NET = {"hidden": [32, 16], "epochs": 30, "patience": 30, "learning_rate": 0.01, "batch_size": 64}


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 5)).astype(np.float32)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.float64)


def fit(**params: Any) -> Network:
    model: Network = trainer_named("TorchClassifier", **{**NET, **params}).fit(*rows(600, 0), *rows(200, 1), {}, 3)
    return model


def learner(half: Any = None) -> tuple[TorchLearner, Problem]:
    """One that multiplies in `half`, which "mixed" chooses by the device: float16 where a GPU knows no bfloat16."""
    (x, y), settings = rows(300, 0), Settings.of("net", NET)
    prepared = Preparation.fit(x)
    drawn = Network.drawn("classification", prepared, settings.hidden, 0)
    made = TorchLearner(drawn, settings, CPU, "full")
    made.half = half
    made.scaler = torch.amp.GradScaler("cpu", enabled=half is torch.float16)
    return made, Problem(drawn, prepared(x), y.astype(np.float32).reshape(-1, 1), None, settings, 0)


def test_auto_is_full_precision_on_a_cpu() -> None:
    one, other = fit(), fit(precision="full")
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(one.layers, other.layers, strict=True))


def test_mixed_precision_learns_the_same_problem_by_other_numbers() -> None:
    """Products are in bfloat16, so the weights are others; they stay float32, and the model is as good."""
    x, y = rows(600, 0)
    full, mixed = fit(precision="full"), fit(precision="mixed")
    assert any(not np.array_equal(a.weight, b.weight) for a, b in zip(full.layers, mixed.layers, strict=True))
    assert all(layer.weight.dtype == np.float32 for layer in mixed.layers)

    def right(model: Network) -> float:
        value = model.preparation(x)
        for layer in model.layers[:-1]:
            value = np.maximum(value @ layer.weight.T + layer.bias, 0)
        last = model.layers[-1]
        return float(((value @ last.weight.T + last.bias > 0).ravel() == y).mean())

    assert right(full) > 0.95 and right(mixed) > right(full) - 0.02


def test_the_same_seed_gives_the_same_model_in_mixed_precision() -> None:
    one, other = fit(precision="mixed"), fit(precision="mixed")
    assert all(np.array_equal(a.weight, b.weight) for a, b in zip(one.layers, other.layers, strict=True))


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16], ids=str)
def test_a_learner_goes_on_as_it_would_have(half: Any) -> None:
    """Its state is everything: weights, moments, and for float16 the scale of the gradients, which changes."""
    whole, problem = learner(half)
    for _ in range(4):
        whole.epoch(problem.x, problem.y)
    first, _ = learner(half)
    for _ in range(2):
        first.epoch(problem.x, problem.y)
    second, _ = learner(half)
    second.restore(first.state())
    for _ in range(2):
        second.epoch(problem.x, problem.y)
    for a, b in zip(whole.layers(), second.layers(), strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    assert whole.state().keys() == second.state().keys()
    assert ("scaler.scale" in whole.state()) is (half is torch.float16)


def test_gradients_too_large_for_float16_are_left_out_and_the_scale_halved() -> None:
    """As the loss scale begins, 65,536 times a large loss is infinite in float16: no step is made of that."""
    made, problem = learner(torch.float16)
    before = made.scaler.get_scale()
    made.epoch(problem.x * 1e4, problem.y)
    assert made.scaler.get_scale() < before
    assert all(np.isfinite(layer.weight).all() for layer in made.layers())
