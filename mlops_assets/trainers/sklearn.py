"""scikit-learn's histogram gradient boosting, or a linear pipeline; saved by skops, which holds no code.

skops rebuilds objects from a list of types. The list is ours and complete: a file that names any other
type is refused before anything is built, also where skops itself would trust it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlops_assets.checkpoints import NO_CHECKPOINTS, Progress
from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file
from resources.hardware import CPU, Device

if TYPE_CHECKING:
    import numpy as np

    from mlops_assets.trainers import Predictor
    from mlops_assets.trainers.graphs.graph import Graph
    from mlops_assets.trainers.graphs.trees import Link, Tree

FILE, SCHEMA = "model.skops", "schema.json"
LINKS: Mapping[str, Link] = {  # from the sum of the leaves to the answer, by loss
    "HalfBinomialLoss": "Sigmoid",
    "HalfSquaredError": "Identity",
    "AbsoluteError": "Identity",
    "PinballLoss": "Identity",
    "HalfPoissonLoss": "Exp",
    "HalfGammaLoss": "Exp",
}
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
        "sklearn._loss._loss.CyHalfGammaLoss",
        "sklearn._loss._loss.CyHalfPoissonLoss",
        "sklearn._loss._loss.CyHalfSquaredError",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogLink",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.loss.AbsoluteError",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfGammaLoss",
        "sklearn._loss.loss.HalfPoissonLoss",
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
    a number, so give it numeric inputs. A fit that was broken off starts over: scikit-learn shows nothing
    of a fit before its end.
    """

    estimators: ClassVar[Mapping[str, str]]
    scores = False

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        x_valid: np.ndarray | None,
        y_valid: np.ndarray | None,
        params: Mapping[str, Any],
        seed: int,
        progress: Progress = NO_CHECKPOINTS,  # noqa: ARG002
        device: Device = CPU,  # noqa: ARG002 - it computes on CPUs alone
    ) -> Any:
        settings = dict(self.params) | dict(params)
        kind = settings.pop("model", "boosting")
        if kind not in self.estimators:
            raise TrainerParameterError.of(
                type(self).__name__, "model", f"is {kind!r}", f"Choose one of: {', '.join(self.estimators)}."
            )
        if kind == "linear":
            # in double: a float32 of, say, seconds since 1970 has no precision left once it is scaled
            return self._linear(settings, seed).fit(x.astype("float64"), y)
        x = _without_empty_columns(x)
        if x_valid is None:
            return self._boosting(settings | {"early_stopping": False}, seed).fit(x, y)
        return self._boosting(settings | {"early_stopping": True}, seed).fit(x, y, X_val=x_valid, y_val=y_valid)

    def write(self, model: Any, directory: Path) -> None:
        import skops.io

        skops.io.dump(model, directory / FILE)
        _settle(directory / FILE)

    def graph(self, model: Any) -> Graph:
        """Boosting as one operator of trees, the linear pipeline as a product."""
        return _boosting_graph(model) if hasattr(model, "_predictors") else _linear_graph(model)

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


def _settle(path: Path) -> None:
    """The same bytes for the same model: skops writes down the time, and where in memory each part lay."""
    from zipfile import ZipFile, ZipInfo

    ids: dict[int, int] = {}
    names: dict[str, str] = {}

    def renumber(node: Any) -> None:
        if isinstance(node, dict):
            if "__id__" in node:
                node["__id__"] = ids.setdefault(node["__id__"], len(ids))
            if isinstance(node.get("file"), str):
                node["file"] = names.setdefault(node["file"], f"{len(names)}{Path(node['file']).suffix}")
            node = list(node.values())
        for item in node if isinstance(node, list) else ():
            renumber(item)

    with ZipFile(path) as archive:
        schema = json.loads(archive.read(SCHEMA))
        renumber(schema)
        parts = {new: archive.read(old) for old, new in names.items()}
    with ZipFile(path, "w") as archive:
        for name, content in {**parts, SCHEMA: json.dumps(schema).encode()}.items():
            archive.writestr(ZipInfo(name), content)  # of 1980, as every ZipInfo that is told no time


def _without_empty_columns(x: np.ndarray) -> np.ndarray:
    """Columns without a single value become zeros: boosting cannot bin them, and never splits a constant."""
    import numpy as np

    return np.where(np.isnan(x).all(axis=0), np.float32(0), x)


def _boosting_graph(model: Any) -> Graph:
    from mlops_assets.trainers.graphs.graph import NotConvertibleError
    from mlops_assets.trainers.graphs.trees import Forest

    loss = type(model._loss).__name__  # noqa: SLF001 - scikit-learn shows neither its trees nor their link elsewhere
    if loss not in LINKS:
        raise NotConvertibleError.of("loss", loss, LINKS)
    trees = [_tree(predictor.nodes) for (predictor,) in model._predictors]  # noqa: SLF001
    base = float(model._baseline_prediction.item())  # noqa: SLF001
    return Forest(trees, model.n_features_in_, "<=", LINKS[loss], base).graph()


def _tree(nodes: np.ndarray) -> Tree:
    from mlops_assets.trainers.graphs.graph import NotConvertibleError
    from mlops_assets.trainers.graphs.trees import Tree

    if nodes["is_categorical"].any():
        raise NotConvertibleError.of("kind of split", "a category", ["a threshold"])
    return Tree(
        leaf=nodes["is_leaf"].astype(bool),
        column=nodes["feature_idx"],
        threshold=nodes["num_threshold"],
        yes=nodes["left"].astype(int),
        no=nodes["right"].astype(int),
        missing_yes=nodes["missing_go_to_left"],
        value=nodes["value"],
        weight=nodes["count"],
    )


def _linear_graph(model: Any) -> Graph:
    """Medians for what is missing, then one product in double: scaling is folded into its weights."""
    import numpy as np

    from mlops_assets.trainers.graphs.graph import Graph, assemble, cast, node

    imputer, scaler, estimator = (step for _, step in model.steps)
    weights = np.ravel(estimator.coef_) / scaler.scale_
    medians = imputer.statistics_.astype(np.float64)
    constants = {
        "medians": medians[np.newaxis, :],
        "weights": weights[:, np.newaxis],
        "intercept": np.ravel(estimator.intercept_) - weights @ scaler.mean_,
    }
    last = "share" if hasattr(model, "predict_proba") else "sum"
    nodes = [
        cast("x", "doubles"),
        node("IsNaN", ["doubles"], "missing"),
        node("Where", ["missing", "medians", "doubles"], "whole"),
        node("MatMul", ["whole", "weights"], "product"),
        node("Add", ["product", "intercept"], "sum"),
        *([node("Sigmoid", ["sum"], "share")] if last == "share" else []),
    ]
    spread = np.array([-3.0, 0.0, 1.0])
    edges = [mean + scale * spread for mean, scale in zip(scaler.mean_, scaler.scale_, strict=True)]
    return Graph(assemble(nodes, constants, len(weights), last), edges)


def load(directory: Path) -> Predictor:
    import numpy as np
    import skops.io

    path = model_file(directory, FILE, b"PK", "a skops archive")
    if strange := sorted(_types(path) - TRUSTED):
        raise UnsafeModelFileError.of(path, "only types that a trainer of ours writes", f"also {', '.join(strange)}")
    model = skops.io.load(path, trusted=sorted(TRUSTED & set(skops.io.get_untrusted_types(file=path))))
    if hasattr(model, "predict_proba"):
        return lambda x: np.asarray(model.predict_proba(x.astype(np.float64))[:, 1], dtype=np.float64)
    return lambda x: np.asarray(model.predict(x.astype(np.float64)), dtype=np.float64)


def _types(path: Path) -> set[str]:
    """Every type that a skops archive would build."""
    from zipfile import BadZipFile, ZipFile

    try:
        with ZipFile(path) as archive:
            return set(_named_types(json.loads(archive.read(SCHEMA))))
    except (BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise UnsafeModelFileError.of(path, "a skops archive", "something it cannot read") from problem


def _named_types(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "__class__" in node:
            yield f"{node.get('__module__')}.{node['__class__']}"
        node = list(node.values())
    for item in node if isinstance(node, list) else ():
        yield from _named_types(item)
