"""A metric means the same everywhere, and is never computed where it is not defined."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.metrics import METRICS, MetricError, better, metrics_of

TRUTH = np.array([0, 1, 1, 0, 1, 0, 1, 0], dtype=float)
CHOSEN = np.array([0, 1, 0, 0, 1, 1, 1, 0], dtype=float)
GUESS = np.array([0.2, 0.9, 0.4, 0.3, 0.8, 0.6, 0.7, 0.1])


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_prediction_is_never_worse_than_another(name: str) -> None:
    """Every metric prefers the truth itself, in the direction it declares."""
    metric = METRICS[name]
    guess = CHOSEN if metric.task == "multiclass" else GUESS
    assert metric.gain(metric.compute(TRUTH, TRUTH), metric.compute(TRUTH, guess)) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("roc_auc", 15 / 16),
        ("accuracy", 6 / 8),
        ("brier", float(((TRUTH - GUESS) ** 2).mean())),
        ("log_loss", float(-np.log(np.where(TRUTH == 1, GUESS, 1 - GUESS)).mean())),
        ("mae", float(np.abs(TRUTH - GUESS).mean())),
        ("rmse", math.sqrt(float(((TRUTH - GUESS) ** 2).mean()))),
        ("r2", 1 - float(((TRUTH - GUESS) ** 2).sum() / ((TRUTH - 0.5) ** 2).sum())),
        ("median_absolute_error", float(np.median(np.abs(TRUTH - GUESS)))),
    ],
)
def test_a_metric_equals_its_definition(name: str, value: float) -> None:
    """Each number is the textbook's; the worked value is written out beside it."""
    assert METRICS[name].compute(TRUTH, GUESS) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top1_accuracy", 5 / 8),
        ("balanced_accuracy", (3 / 4 + 1 / 2 + 1 / 2) / 3),
        ("f1_macro", (6 / 7 + 1 / 2 + 2 / 3) / 4),
    ],
)
def test_a_metric_of_several_classes_equals_its_definition(name: str, value: float) -> None:
    """Answers of a class that the truth does not have (3) are wrong answers."""
    truth, chosen = np.array([0, 0, 0, 0, 1, 1, 2, 2.0]), np.array([0, 0, 0, 1, 1, 3, 2, 3.0])
    assert METRICS[name].compute(truth, chosen) == pytest.approx(value)


@pytest.mark.parametrize("metric", metrics_of("multiclass"), ids=lambda metric: metric.name)
def test_a_class_is_a_whole_number_from_0_on(metric) -> None:
    """A probability or a negative number is refused where a class is wanted, and an example is given."""
    with pytest.raises(MetricError, match=r"8 of 8 predictions are no classes, e.g. 0.2"):
        metric.compute(TRUTH, GUESS)
    with pytest.raises(MetricError, match=r"1 of 8 labels are no classes, e.g. -1"):
        metric.compute(np.where(np.arange(8) == 3, -1.0, TRUTH), CHOSEN)
    assert metric.compute(np.ones(8), np.ones(8)) == 1, "one class alone is no riddle, but it has an accuracy"


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_unusable_predictions_are_refused(name: str, bad: float) -> None:
    """One NaN or infinite prediction is an error that names the metric and counts the rows."""
    with pytest.raises(MetricError, match=f"{name}.*1 of 8 predictions"):
        METRICS[name].compute(TRUTH, np.where(np.arange(8) == 3, bad, GUESS))


@pytest.mark.parametrize("metric", metrics_of("classification"), ids=lambda metric: metric.name)
def test_one_class_defines_no_classification_metric(metric) -> None:
    """Rows of one class only are refused, and so are predictions that are no probabilities."""
    with pytest.raises(MetricError, match="not both 0 and 1"):
        metric.compute(np.ones(8), GUESS)
    with pytest.raises(MetricError, match="probability"):
        metric.compute(TRUTH, GUESS * 3)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("truth", "guess"), [([], []), ([0, 1], [0.5])])
def test_rows_that_do_not_pair_up_are_refused(name: str, truth: list[float], guess: list[float]) -> None:
    """No rows, or truth and predictions of different lengths, are an error that gives both shapes."""
    with pytest.raises(MetricError, match="shape"):
        METRICS[name].compute(np.array(truth), np.array(guess))


@given(st.sampled_from(sorted(METRICS)), st.floats(-10, 10), st.floats(-10, 10))
def test_better_is_a_strict_order(name: str, a: float, b: float) -> None:
    """Of two different values exactly one is better; equal ones are not."""
    metric = METRICS[name]
    assert better(metric, a, b) + better(metric, b, a) == (a != b)


def test_importing_the_metrics_is_light() -> None:
    """Declarations are checked against this table when definitions load: no library comes with it."""
    code = "import sys, mlops_assets.metrics; sys.exit(bool({'numpy', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
