"""LightGBM's gradient-boosted trees, by its native API; saved as its text format, readable in any editor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mlops_assets.trainers import Trainer, TrainerParameterError, UnsafeModelFileError, model_file, threads

if TYPE_CHECKING:
    import lightgbm as lgb
    import numpy as np

    from mlops_assets.trainers import Predictor

FILE = "model.txt"
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
    ) -> lgb.Booster:
        import lightgbm as lgb

        settings = DEFAULTS | {"objective": self.objective} | dict(self.params) | dict(params)
        self._refuse_unknown(settings)
        rounds, patience = settings.pop("n_estimators"), settings.pop("early_stopping_rounds")
        # row-wise and deterministic: without both, the same seed may give another model on another day
        fixed = {"seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": threads(), "verbosity": -1}
        train = lgb.Dataset(x, y, params=fixed | settings)
        if x_valid is None or y_valid is None:
            return lgb.train(fixed | settings, train, num_boost_round=rounds)
        return lgb.train(
            fixed | settings,
            train,
            num_boost_round=rounds,
            valid_sets=[train.create_valid(x_valid, y_valid)],
            callbacks=[lgb.early_stopping(patience, verbose=False)],
        )

    def save(self, model: lgb.Booster, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        model.save_model(directory / FILE)

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
