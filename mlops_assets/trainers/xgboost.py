"""XGBoost's gradient-boosted trees, by its native API; saved as UBJSON, its own format without code.

The scikit-learn wrapper is not used: the serving process needs only the booster, and wrappers tempt
people to pickle them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file, threads

if TYPE_CHECKING:
    import numpy as np
    import xgboost as xgb

    from mlops_assets.trainers import Predictor

FILE = "model.ubj"
DEFAULTS = {"n_estimators": 300, "learning_rate": 0.1, "max_depth": 6, "early_stopping_rounds": 30}


class _XGBoost(Trainer):
    objective: ClassVar[str]

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_valid: np.ndarray | None,
        y_valid: np.ndarray | None,
        params: Mapping[str, Any],
        seed: int,
    ) -> xgb.Booster:
        import xgboost as xgb

        settings = DEFAULTS | {"objective": self.objective} | dict(self.params) | dict(params)
        self._refuse_unknown(settings)
        rounds, patience = settings.pop("n_estimators"), settings.pop("early_stopping_rounds")
        fixed = {"tree_method": "hist", "seed": seed, "nthread": threads(), "verbosity": 0}
        train = xgb.QuantileDMatrix(x, label=y, nthread=threads(), max_bin=settings.get("max_bin", 256))
        if x_valid is None or y_valid is None:
            return xgb.train(fixed | settings, train, num_boost_round=rounds)
        valid = xgb.QuantileDMatrix(x_valid, label=y_valid, ref=train, nthread=threads())
        booster = xgb.train(
            fixed | settings,
            train,
            num_boost_round=rounds,
            evals=[(valid, "validation")],
            early_stopping_rounds=patience,
            verbose_eval=False,
        )
        # a booster predicts with every tree it has, also those grown after its best round
        return booster[: booster.best_iteration + 1]

    def save(self, model: xgb.Booster, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        model.save_model(directory / FILE)

    def learned(self, model: xgb.Booster) -> dict[str, Any]:
        return {"n_estimators": model.num_boosted_rounds()}

    def importance(self, model: xgb.Booster) -> list[float]:
        """The total gain of each column."""
        gains = model.get_score(importance_type="total_gain")
        return [_number(gains.get(f"f{column}", 0.0)) for column in range(model.num_features())]

    def _refuse_unknown(self, settings: Mapping[str, Any]) -> None:
        """XGBoost ignores names that it does not know; the list of those it does is its wrapper's signature."""
        import xgboost as xgb

        known = {*xgb.XGBModel().get_params(), "eta", "lambda", "alpha", "min_split_loss"}
        for name in settings:
            if name not in known:
                raise TrainerParameterError.of(
                    type(self).__name__, name, "is not one of XGBoost's", f"It knows: {', '.join(sorted(known))}."
                )


class XGBoostClassifier(_XGBoost):
    """Predicts the probability of the positive class."""

    task = "classification"
    objective = "binary:logistic"


class XGBoostRegressor(_XGBoost):
    """Predicts a value, by squared error unless `objective` says otherwise."""

    task = "regression"
    objective = "reg:squarederror"


def load(directory: Path) -> Predictor:
    import numpy as np
    import xgboost as xgb

    path = model_file(directory, FILE, b"{", "XGBoost's UBJSON")
    try:
        booster = xgb.Booster({"nthread": threads()}, model_file=path)
    except xgb.core.XGBoostError as problem:
        raise UnsafeModelFileError.of(path, "XGBoost's UBJSON", "something it cannot read") from problem

    def predict(x: np.ndarray) -> np.ndarray:
        return booster.inplace_predict(x, validate_features=False).astype(np.float64)

    return predict


def _number(value: float | list[float]) -> float:
    return float(value if isinstance(value, int | float) else sum(value))
