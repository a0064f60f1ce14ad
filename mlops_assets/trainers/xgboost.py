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

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file, threads
from resources.hardware import CPU, Device, NoSuchDeviceError

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
TOGETHER = 10  # rounds that draw from one state, which a checkpoint may not cut; anew in each took a tenth more time
SAMPLED = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")
DEFAULTS = {"n_estimators": 300, "learning_rate": 0.1, "max_depth": 6, "early_stopping_rounds": 30}


class _XGBoost(Trainer):
    objective: ClassVar[str]
    accelerators = ("cuda", "cpu")
    needs: ClassVar = {"cuda": "xgboost"}  # which brings its own kernels

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_valid: np.ndarray | None,
        y_valid: np.ndarray | None,
        params: Mapping[str, Any],
        seed: int,
        progress: Progress = NO_CHECKPOINTS,
        device: Device = CPU,
    ) -> xgb.Booster:
        import xgboost as xgb

        settings = DEFAULTS | {"objective": self.objective} | dict(self.params) | dict(params)
        self._refuse_unknown(settings)
        rounds, patience = settings.pop("n_estimators"), settings.pop("early_stopping_rounds")
        # draws depend on the round alone: else a model that is continued is another one
        fixed = {"tree_method": "hist", "seed": seed, "seed_per_iteration": True, "nthread": threads(), "verbosity": 0}
        fixed["device"] = f"cuda:{device.index}" if device.kind == "cuda" else "cpu"
        train = xgb.QuantileDMatrix(x, label=y, nthread=threads(), max_bin=settings.get("max_bin", 256))
        valid = None
        if x_valid is not None and y_valid is not None:
            valid = xgb.QuantileDMatrix(x_valid, label=y_valid, ref=train, nthread=threads())
        return _boosted(fixed | settings, train, valid, rounds, patience, progress)

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


def _boosted(
    settings: dict[str, Any],
    train: xgb.DMatrix,
    valid: xgb.DMatrix | None,
    rounds: int,
    patience: int,
    progress: Progress,
) -> xgb.Booster:
    """Round by round, as `xgb.train` does, from the last checkpoint on; with validation rows, up to the best round."""
    import xgboost as xgb

    from mlops_assets.trainers.boosting.early_stopping import best_round, stalled

    kept, watched = progress.kept(), [train, valid] if valid is not None else [train]
    booster = xgb.Booster(settings, watched, model_file=bytearray(kept.model) if kept else None)
    _refuse_fallback(booster, settings["device"])
    done, scores = (kept.rounds, list(kept.notes["scores"])) if kept else (0, [])
    draws, higher = any(settings.get(name, 1) != 1 for name in SAMPLED), False
    for at in range(done, rounds):
        if draws and at % TOGETHER == 0:
            _draw_anew(booster, settings["tree_method"])
        booster.update(train, at)
        if valid is not None:
            score, higher = _score(booster.eval_set([(valid, "validation")], at))
            scores.append(score)
            progress.scored(at, score, higher)
            if stalled(scores, patience, higher):
                break
        if not draws or (at + 1) % TOGETHER == 0:
            progress.reached(at + 1, lambda: bytes(booster.save_raw("ubj")), scores=scores)
    booster.reset()
    # a booster predicts with every tree it has, also those grown after its best round
    return booster[: best_round(scores, higher) + 1] if scores else booster


def _refuse_fallback(booster: xgb.Booster, device: str) -> None:
    """Where XGBoost finds no GPU it fits on the CPU, with a warning to nobody: the model would be called another."""
    taken = json.loads(booster.save_config())["learner"]["generic_param"]["device"]
    if taken != device:
        raise NoSuchDeviceError.refused(device, f"XGBoost took {taken!r} in its place")


def _draw_anew(booster: xgb.Booster, method: str) -> None:
    """Samplers of columns and rows carry a state that no model file holds; those of new updaters have none yet.

    XGBoost makes its updaters anew when the method changes, and only then.
    """
    for name in ("approx", method):
        booster.set_param({"tree_method": name})
        booster.save_config()  # a parameter takes effect when something needs it


def _score(told: str) -> tuple[float, bool]:
    """The last metric of `[7]\tvalidation-logloss:0.31`, and whether more of it is better, as XGBoost decides that."""
    name, _, value = told.rpartition("\t")[2].partition("-")[2].rpartition(":")
    return float(value), name != "mape" and name.startswith(("auc", "pre", "map", "ndcg"))


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
