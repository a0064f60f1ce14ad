"""XGBoost's gradient-boosted trees, by its native API; saved as UBJSON, its own format without code.

The scikit-learn wrapper is not used: the serving process needs only the booster, and wrappers tempt
people to pickle them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file, threads

if TYPE_CHECKING:
    import numpy as np
    import xgboost as xgb

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.graphs.graph import Graph
    from mlops_assets.trainers.graphs.trees import Link, Tree

FILE = "model.ubj"
LINKS: Mapping[str, Link] = {  # from the sum of the leaves to the answer, by objective
    "binary:logistic": "Sigmoid",
    "reg:logistic": "Sigmoid",
    "reg:squarederror": "Identity",
    "reg:absoluteerror": "Identity",
    "reg:pseudohubererror": "Identity",
    "count:poisson": "Exp",
    "reg:gamma": "Exp",
    "reg:tweedie": "Exp",
}
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

    def write(self, model: xgb.Booster, directory: Path) -> None:
        model.save_model(directory / FILE)

    def graph(self, model: xgb.Booster) -> Graph:
        """The booster as one ONNX operator."""
        from mlops_assets.trainers.graphs.trees import Forest

        learner = json.loads(model.save_raw("json"))["learner"]
        link, base = _link(learner)
        trees = [_tree(tree) for tree in _gradient_trees(learner["gradient_booster"])]
        return Forest(trees, model.num_features(), "<", link, base).graph()

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


def _link(learner: Mapping[str, Any]) -> tuple[Link, float]:
    """The link of a booster, and the sum that it starts from: `base_score` is written as an answer."""
    from mlops_assets.trainers.graphs.graph import NotConvertibleError

    objective = learner["objective"]["name"]
    if objective not in LINKS:
        raise NotConvertibleError.of("objective", objective, LINKS)
    score = json.loads(learner["learner_model_param"]["base_score"])
    base = float(score[0] if isinstance(score, list) else score)
    link = LINKS[objective]
    return link, {"Identity": base, "Sigmoid": _logit(base), "Exp": math.log(base) if base > 0 else 0.0}[link]


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else 0.0


def _gradient_trees(booster: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    from mlops_assets.trainers.graphs.graph import NotConvertibleError

    if booster["name"] != "gbtree":
        raise NotConvertibleError.of("booster", booster["name"], ["gbtree"])
    trees: list[Mapping[str, Any]] = booster["model"]["trees"]
    return trees


def _tree(tree: Mapping[str, Any]) -> Tree:
    """A tree of XGBoost's JSON: a leaf has no left child, and its value stands where a split has its threshold."""
    import numpy as np

    from mlops_assets.trainers.graphs.trees import Tree

    # written as the shortest decimal of a float32, which as a double would be another threshold
    left, condition = np.array(tree["left_children"]), np.array(tree["split_conditions"], dtype=np.float32)
    return Tree(
        leaf=left == -1,
        column=np.array(tree["split_indices"]),
        threshold=condition,
        yes=left,
        no=np.array(tree["right_children"]),
        missing_yes=np.array(tree["default_left"]),
        value=condition,
        weight=np.array(tree["sum_hessian"]),
    )


def _number(value: float | list[float]) -> float:
    return float(value if isinstance(value, int | float) else sum(value))
