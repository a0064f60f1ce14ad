"""The metrics that judge a model: one number from the truth and the predictions of the same rows.

Gates, searches and reports all read this table, so that a metric means the same everywhere. A number
that cannot be computed honestly (one class only, a NaN prediction) is an error, never a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import numpy as np

Task = Literal["classification", "multiclass", "regression"]


class MetricError(ValueError):
    """A metric was asked of rows that do not define it."""

    @classmethod
    def of(cls, metric: str, problem: str, fix: str) -> Self:
        return cls(f"Metric {metric!r} cannot be computed: {problem}. {fix}")


@dataclass(frozen=True)
class Metric:
    """A named number; `function(y_true, y_pred)` takes two float arrays of one length."""

    name: str
    task: Task
    higher_is_better: bool
    function: Callable[[Any, Any], float]

    def compute(self, y_true: np.ndarray, y_pred: np.ndarray) -> float:
        """The metric of `y_pred` (probability of the positive class, class, or value), shape (n,), against `y_true`.

        Raises MetricError when there are no rows, lengths differ, a value is NaN or infinite, or, for
        classification, the truth does not hold both classes or a prediction is no probability, or, for several
        classes, either is no whole number from 0 on. A class that was never learned is a wrong answer, no error.
        """
        import numpy as np

        truth, predictions = np.asarray(y_true, dtype=np.float64), np.asarray(y_pred, dtype=np.float64)
        self._refuse_unusable(truth, predictions)
        if self.task == "classification":
            self._refuse_improbable(truth, predictions)
        if self.task == "multiclass":
            self._refuse_unclassed(truth, predictions)
        return float(self.function(truth, predictions))

    def gain(self, value: float, reference: float) -> float:
        """How much better `value` is than `reference`; negative when it is worse."""
        return value - reference if self.higher_is_better else reference - value

    def _refuse_unusable(self, truth: np.ndarray, predictions: np.ndarray) -> None:
        import numpy as np

        if truth.ndim != 1 or truth.shape != predictions.shape or not len(truth):
            raise MetricError.of(
                self.name,
                f"the truth has shape {truth.shape} and the predictions {predictions.shape}",
                "Give one prediction for each of at least one row.",
            )
        for what, values in (("labels", truth), ("predictions", predictions)):
            if bad := int(np.count_nonzero(~np.isfinite(values))):
                raise MetricError.of(
                    self.name, f"{bad} of {len(values)} {what} are NaN or infinite", f"Mend the {what}."
                )

    def _refuse_improbable(self, truth: np.ndarray, predictions: np.ndarray) -> None:
        import numpy as np

        classes = np.unique(truth).tolist()
        if classes != [0.0, 1.0]:
            raise MetricError.of(
                self.name,
                f"the {len(truth)} labels hold the classes {classes[:5]}, not both 0 and 1",
                "Take more rows.",
            )
        if predictions.min() < 0 or predictions.max() > 1:
            raise MetricError.of(
                self.name,
                f"predictions range from {predictions.min()} to {predictions.max()}",
                "Predict the probability of the positive class, 0 to 1.",
            )

    def _refuse_unclassed(self, truth: np.ndarray, predictions: np.ndarray) -> None:
        for what, values in (("labels", truth), ("predictions", predictions)):
            if len(bad := values[(values < 0) | (values % 1 != 0)]):
                raise MetricError.of(
                    self.name,
                    f"{len(bad)} of {len(values)} {what} are no classes, e.g. {bad[0]}",
                    "Number them from 0.",
                )


def better(metric: Metric, value: float, reference: float) -> bool:
    """Whether `value` is strictly better than `reference`."""
    return metric.gain(value, reference) > 0


def _sklearn(function: str, truth: np.ndarray, predictions: np.ndarray) -> float:
    import sklearn.metrics

    return float(getattr(sklearn.metrics, function)(truth, predictions))


def _accuracy(truth: np.ndarray, predictions: np.ndarray) -> float:
    return float(((predictions >= 0.5) == truth).mean())


def _top1(truth: np.ndarray, predictions: np.ndarray) -> float:
    return float((predictions == truth).mean())


def _recalled(truth: np.ndarray, predictions: np.ndarray) -> float:
    """The mean over the classes there are of the share of each that was found."""
    import numpy as np

    return float(np.mean([(predictions[truth == one] == one).mean() for one in np.unique(truth)]))


def _f1(truth: np.ndarray, predictions: np.ndarray) -> float:
    import sklearn.metrics

    return float(sklearn.metrics.f1_score(truth.astype(int), predictions.astype(int), average="macro", zero_division=0))


def _rmse(truth: np.ndarray, predictions: np.ndarray) -> float:
    return float(((truth - predictions) ** 2).mean() ** 0.5)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("roc_auc", "classification", True, partial(_sklearn, "roc_auc_score")),
        Metric("average_precision", "classification", True, partial(_sklearn, "average_precision_score")),
        Metric("log_loss", "classification", False, partial(_sklearn, "log_loss")),
        Metric("brier", "classification", False, partial(_sklearn, "brier_score_loss")),
        Metric("accuracy", "classification", True, _accuracy),
        Metric("top1_accuracy", "multiclass", True, _top1),
        Metric("balanced_accuracy", "multiclass", True, _recalled),
        Metric("f1_macro", "multiclass", True, _f1),
        Metric("mae", "regression", False, partial(_sklearn, "mean_absolute_error")),
        Metric("rmse", "regression", False, _rmse),
        Metric("r2", "regression", True, partial(_sklearn, "r2_score")),
        Metric("median_absolute_error", "regression", False, partial(_sklearn, "median_absolute_error")),
    )
}


def metrics_of(task: Task) -> list[Metric]:
    """Every metric that a task has."""
    return [metric for metric in METRICS.values() if metric.task == task]
