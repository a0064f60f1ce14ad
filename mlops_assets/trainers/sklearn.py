"""scikit-learn's histogram gradient boosting, or a linear pipeline; saved by skops, which holds no code.

skops rebuilds objects from a list of types. The list is ours and complete: a file that names any other
type is refused before anything is built, also where skops itself would trust it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor

FILE = "model.skops"
TRUSTED = frozenset(
    {
        "builtins.dict",
        "builtins.list",
        "builtins.str",
        "builtins.tuple",
        "numpy.dtype",
        "numpy.float32",
        "numpy.float64",
        "numpy.int64",
        "numpy.ndarray",
        "numpy.random._generator.Generator",
        "numpy.uint64",
        "sklearn._loss._loss.CyAbsoluteError",
        "sklearn._loss._loss.CyHalfBinomialLoss",
        "sklearn._loss._loss.CyHalfSquaredError",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.loss.AbsoluteError",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfSquaredError",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.impute._base.SimpleImputer",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.Ridge",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._label.LabelEncoder",
    }
)


class _Sklearn(Trainer):
    """`model` chooses "boosting" (the default) or "linear"; other parameters go to that estimator.

    The linear pipeline fills missing values with medians and scales; it reads a category's index as
    a number, so give it numeric inputs.
    """

    estimators: ClassVar[Mapping[str, str]]

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_valid: np.ndarray | None,
        y_valid: np.ndarray | None,
        params: Mapping[str, Any],
        seed: int,
    ) -> Any:
        settings = dict(self.params) | dict(params)
        kind = settings.pop("model", "boosting")
        if kind not in self.estimators:
            raise TrainerParameterError.of(
                type(self).__name__, "model", f"is {kind!r}", f"Choose one of: {', '.join(self.estimators)}."
            )
        if kind == "linear":
            return self._linear(settings, seed).fit(x, y)
        x = _without_empty_columns(x)
        if x_valid is None:
            return self._boosting(settings | {"early_stopping": False}, seed).fit(x, y)
        return self._boosting(settings | {"early_stopping": True}, seed).fit(x, y, X_val=x_valid, y_val=y_valid)

    def save(self, model: Any, directory: Path) -> None:
        import skops.io

        directory.mkdir(parents=True, exist_ok=True)
        skops.io.dump(model, directory / FILE)

    def learned(self, model: Any) -> dict[str, Any]:
        return {"max_iter": int(model.n_iter_)} if hasattr(model, "do_early_stopping_") else {}

    def _boosting(self, settings: Mapping[str, Any], seed: int) -> Any:
        import sklearn.ensemble

        return self._made(getattr(sklearn.ensemble, self.estimators["boosting"]), settings, seed)

    def _linear(self, settings: Mapping[str, Any], seed: int) -> Any:
        import sklearn.linear_model
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        estimator = self._made(getattr(sklearn.linear_model, self.estimators["linear"]), settings, seed)
        # a column that was empty in training must not disappear: the matrix keeps its shape
        return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler(), estimator)

    def _made(self, estimator: Any, settings: Mapping[str, Any], seed: int) -> Any:
        known = sorted(estimator().get_params())
        for name in settings:
            if name not in known:
                raise TrainerParameterError.of(
                    type(self).__name__, name, f"is not one of {estimator.__name__}'s", f"It knows: {', '.join(known)}."
                )
        return estimator(**{"random_state": seed, **settings})


class SklearnClassifier(_Sklearn):
    """Predicts the probability of the positive class."""

    task = "classification"
    estimators: ClassVar = {"boosting": "HistGradientBoostingClassifier", "linear": "LogisticRegression"}


class SklearnRegressor(_Sklearn):
    """Predicts a value."""

    task = "regression"
    estimators: ClassVar = {"boosting": "HistGradientBoostingRegressor", "linear": "Ridge"}


def _without_empty_columns(x: np.ndarray) -> np.ndarray:
    """Columns without a single value become zeros: boosting cannot bin them, and never splits a constant."""
    import numpy as np

    return np.where(np.isnan(x).all(axis=0), np.float32(0), x)


def load(directory: Path) -> Predictor:
    import numpy as np
    import skops.io

    path = model_file(directory, FILE, b"PK", "a skops archive")
    if strange := sorted(_types(path) - TRUSTED):
        raise UnsafeModelFileError.of(path, "only types that a trainer of ours writes", f"also {', '.join(strange)}")
    model = skops.io.load(path, trusted=sorted(TRUSTED & set(skops.io.get_untrusted_types(file=path))))
    if hasattr(model, "predict_proba"):
        return lambda x: np.asarray(model.predict_proba(x)[:, 1], dtype=np.float64)
    return lambda x: np.asarray(model.predict(x), dtype=np.float64)


def _types(path: Path) -> set[str]:
    """Every type that a skops archive would build."""
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as archive:
            return set(_named_types(json.loads(archive.read("schema.json"))))
    except (BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise UnsafeModelFileError.of(path, "a skops archive", "something it cannot read") from problem


def _named_types(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "__class__" in node:
            yield f"{node.get('__module__')}.{node['__class__']}"
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from _named_types(item)
