"""LightGBM's gradient-boosted trees, by its native API; saved as its text format, readable in any editor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file, threads
from mlops_assets.trainers.boosting.lightgbm_rounds import Draws, Rounds, resumable
from resources.hardware import CPU, Device

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.graphs.graph import Graph
    from mlops_assets.trainers.graphs.trees import Link, Tree

TINY = 1.0000000180025095e-35  # LightGBM's kZeroThreshold, a float32
FILE = "model.txt"
LINKS: Mapping[str, Link] = {  # from the sum of the leaves to the answer, by objective
    "binary": "Sigmoid",
    "cross_entropy": "Sigmoid",
    "regression": "Identity",
    "regression_l1": "Identity",
    "huber": "Identity",
    "fair": "Identity",
    "quantile": "Identity",
    "mape": "Identity",
    "poisson": "Exp",
    "gamma": "Exp",
    "tweedie": "Exp",
}
DEFAULTS = {"n_estimators": 300, "learning_rate": 0.1, "num_leaves": 31, "early_stopping_rounds": 30}


class _LightGBM(Trainer):
    objective: ClassVar[str]

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_valid: np.ndarray | None,
        y_valid: np.ndarray | None,
        params: Mapping[str, Any],
        seed: int,
        progress: Progress = NO_CHECKPOINTS,
        device: Device = CPU,  # noqa: ARG002 - it computes on CPUs alone
    ) -> lgb.Booster:
        import lightgbm as lgb

        settings = DEFAULTS | {"objective": self.objective} | dict(self.params) | dict(params)
        self._refuse_unknown(settings)
        rounds, patience = _taken(settings, "num_iterations"), _taken(settings, "early_stopping_round")
        # row-wise and deterministic: without both, the same seed may give another model on another day
        fixed = {"seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": threads(), "verbosity": -1}
        if not resumable(settings):
            progress = Progress(follower=progress.follower, watch=progress.watch)
        kept, train = progress.kept(), lgb.Dataset(x, y, params=fixed | settings)
        valid = [] if x_valid is None or y_valid is None else [train.create_valid(x_valid, y_valid)]
        return lgb.train(
            fixed | settings,
            train,
            num_boost_round=rounds - (kept.rounds if kept else 0),
            valid_sets=valid,
            callbacks=[Draws(settings, seed, rounds), Rounds(settings, rounds, patience, progress, kept)],
            init_model=lgb.Booster(model_str=kept.model.decode()) if kept else None,
        )

    def write(self, model: lgb.Booster, directory: Path) -> None:
        model.save_model(directory / FILE)

    def graph(self, model: lgb.Booster) -> Graph:
        """The booster as one ONNX operator."""
        from mlops_assets.trainers.graphs.trees import Forest

        document = model.dump_model()
        link = _link(document["objective"])
        trees = [_tree(tree["tree_structure"]) for tree in document["tree_info"]]
        return Forest(trees, model.num_feature(), "<=", link).graph()

    def learned(self, model: lgb.Booster) -> dict[str, Any]:
        return {"n_estimators": model.best_iteration if model.best_iteration > 0 else model.num_trees()}

    def importance(self, model: lgb.Booster) -> list[float]:
        """The total gain of each column."""
        gains: list[float] = model.feature_importance("gain").tolist()
        return gains

    def _refuse_unknown(self, settings: Mapping[str, Any]) -> None:
        """LightGBM only warns of names that it does not know; its own table of aliases lists those it does."""
        from lightgbm.basic import _ConfigAliases

        aliases = _ConfigAliases._get_all_param_aliases()  # noqa: SLF001 - LightGBM shows the table nowhere else
        known = {*aliases, *(alias for names in aliases.values() for alias in names)}
        for name in settings:
            if name not in known:
                raise TrainerParameterError.of(
                    type(self).__name__, name, "is not one of LightGBM's", f"It knows: {', '.join(sorted(aliases))}."
                )


def _taken(settings: dict[str, Any], name: str) -> Any:
    """Take a parameter out, by whichever of its names; the one that was given, not our default under another name."""
    from lightgbm.basic import _ConfigAliases

    given = [alias for alias in settings if alias in _ConfigAliases.get(name)]
    values = {alias: settings.pop(alias) for alias in given}
    return next((value for alias, value in values.items() if alias not in DEFAULTS), next(iter(values.values())))


class LightGBMClassifier(_LightGBM):
    """Predicts the probability of the positive class."""

    task = "classification"
    objective = "binary"


class LightGBMRegressor(_LightGBM):
    """Predicts a value, by squared error unless `objective` says otherwise."""

    task = "regression"
    objective = "regression"


def load(directory: Path) -> Predictor:
    import lightgbm as lgb
    import numpy as np

    path = model_file(directory, FILE, b"tree\n", "LightGBM's text")
    # LightGBM aborts the whole process, not only the call, on a truncated file
    if b"\nend of parameters\n" not in path.read_bytes()[-400:]:
        raise UnsafeModelFileError.of(path, "LightGBM's text", "one without its end")
    try:
        booster = lgb.Booster(model_file=path)
    except lgb.basic.LightGBMError as problem:
        raise UnsafeModelFileError.of(path, "LightGBM's text", "something it cannot read") from problem

    def predict(x: np.ndarray) -> np.ndarray:
        return np.asarray(booster.predict(x, num_threads=threads()), dtype=np.float64)

    return predict


def _link(objective: str) -> Link:
    """The link of an objective as LightGBM writes it, e.g. `binary sigmoid:1`."""
    from mlops_assets.trainers.graphs.graph import NotConvertibleError

    name, *settings = objective.split()
    if name not in LINKS or "sqrt" in settings:
        raise NotConvertibleError.of("objective", objective, LINKS)
    return LINKS[name]


def _tree(root: Mapping[str, Any]) -> Tree:
    """A tree of LightGBM's JSON, its nodes in the order that they are met."""
    import numpy as np

    from mlops_assets.trainers.graphs.trees import Tree

    rows: list[dict[str, Any]] = []

    def add(node: Mapping[str, Any]) -> int:
        rows.append(row := _leaf(node) if "leaf_value" in node else _split(node))
        place = len(rows) - 1
        if not row["leaf"]:
            row["yes"], row["no"] = add(node["left_child"]), add(node["right_child"])
        return place

    add(root)
    return Tree(**{name: np.array([row[name] for row in rows]) for name in rows[0]})


def _leaf(node: Mapping[str, Any]) -> dict[str, Any]:
    nothing = dict.fromkeys(("column", "threshold", "yes", "no", "missing_yes"), 0)
    # LightGBM counts no rows for a tree of one leaf
    return {"leaf": True, "value": node["leaf_value"], "weight": node.get("leaf_count", 0), **nothing}


def _split(node: Mapping[str, Any]) -> dict[str, Any]:
    """A column that never missed a value in training reads NaN as 0, and every column reads what is tiny as 0."""
    from mlops_assets.trainers.graphs.graph import NotConvertibleError

    if (kind := node["decision_type"]) != "<=":
        raise NotConvertibleError.of("kind of split", kind, ["<="])
    if (missing := node["missing_type"]) not in {"NaN", "None"}:
        raise NotConvertibleError.of("missing value", missing, ["NaN", "None"])
    nan_goes_left = node["default_left"] if missing == "NaN" else node["threshold"] >= 0
    return {
        "leaf": False,
        "column": node["split_feature"],
        "threshold": _beyond_tiny(node["threshold"]),
        "missing_yes": nan_goes_left,
        "value": 0.0,
        "weight": node["internal_count"],
    }


def _beyond_tiny(threshold: float) -> float:
    """The threshold that says of every value what LightGBM says, which takes those within TINY of 0 for 0."""
    if not -TINY <= threshold <= TINY:
        return threshold
    return TINY if threshold >= 0 else math.nextafter(-TINY, -math.inf)
