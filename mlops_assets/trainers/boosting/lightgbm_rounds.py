"""What happens around each of LightGBM's rounds, so that a training that was killed goes on to the same model.

LightGBM's samplers carry a state that no model file holds. They are seeded anew for each draw, from the seed and the
round alone, so that what is drawn does not depend on where the training began. Their own parameters can do that,
but for two kinds: the bag of GOSS and the rounding of quantized gradients. Fits with those start over, as do
those whose trees are changed after they were grown (dart), or know no model to begin with (rf).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlops_assets.trainers.boosting.early_stopping import best_round, stalled

if TYPE_CHECKING:
    from mlops_assets.checkpoints import Kept, Progress

BAGS = ("bagging_fraction", "pos_bagging_fraction", "neg_bagging_fraction")
COLUMNS = ("feature_fraction", "feature_fraction_bynode")
APART = 1e-9  # LightGBM seeds its bags anew only for another fraction; this is one of the same rows, less one at most


class Draws:
    """Before a round: seed what is drawn in it."""

    before_iteration, order = True, 0

    def __init__(self, settings: Mapping[str, Any], seed: int, rounds: int) -> None:
        self.seed, self.rounds, self.first = seed, rounds, True
        self.bags = {name: float(value) for name in BAGS if (value := setting(settings, name, 1.0)) < 1}
        self.every = bagging(settings)
        self.columns = any(setting(settings, name, 1.0) < 1 for name in COLUMNS)
        self.trees = bool(setting(settings, "extra_trees", False))

    def __call__(self, env: Any) -> None:
        at, changed = env.iteration, {}
        if self.first and env.begin_iteration:  # a continued model says how many rounds it has in all
            changed["num_iterations"] = self.rounds
        self.first = False
        if self.columns:
            changed["feature_fraction_seed"] = self.seed + at
        if self.trees:
            changed["extra_seed"] = self.seed + at
        if self.bags and self.every and at % self.every == 0:
            step = 1 + at // self.every % 2
            changed |= {"bagging_seed": self.seed + at} | {
                name: value * (1 - step * APART) for name, value in self.bags.items()
            }
        if changed:
            env.model.reset_parameter(changed)


class Rounds:
    """After a round: keep the scores, stop when they stall, and write a checkpoint when one is due."""

    before_iteration, order = False, 30

    def __init__(
        self, settings: Mapping[str, Any], rounds: int, patience: int, progress: Progress, kept: Kept | None
    ) -> None:
        self.rounds, self.patience, self.progress = rounds, patience, progress
        self.whole = bagging(settings) or 1
        self.stops = setting(settings, "boosting", "gbdt") != "dart"  # whose later rounds change its earlier trees
        self.scores: dict[str, list[float]] = dict(kept.notes["scores"]) if kept else {}

    def __call__(self, env: Any) -> None:
        from lightgbm.callback import EarlyStopException

        done = env.iteration + 1
        for _, metric, value, _ in env.evaluation_result_list or []:
            self.scores.setdefault(metric, []).append(value)
        if env.evaluation_result_list:
            _, _, score, higher_is_better = env.evaluation_result_list[0]
            self.progress.scored(env.iteration, score, higher_is_better)
        for _, metric, _, higher in (env.evaluation_result_list or []) if self.stops else []:
            if stalled(self.scores[metric], self.patience, higher) or done == self.rounds:
                raise EarlyStopException(best_round(self.scores[metric], higher), env.evaluation_result_list)
        # between two bags: a continued training begins with one
        if done % self.whole == 0 and done < self.rounds:
            self.progress.reached(
                done, lambda: env.model.model_to_string(num_iteration=-1).encode(), scores=self.scores
            )


def resumable(settings: Mapping[str, Any]) -> bool:
    """Whether a training with these parameters can be continued to the model that it would have been."""
    plain = setting(settings, "boosting", "gbdt") in {"gbdt", "gbrt"}
    bagged = setting(settings, "data_sample_strategy", "bagging") == "bagging"
    return plain and bagged and not setting(settings, "use_quantized_grad", False)


def bagging(settings: Mapping[str, Any]) -> int:
    """After how many rounds other rows are drawn; 0 where none are."""
    drawn = any(setting(settings, name, 1.0) < 1 for name in BAGS)
    return int(setting(settings, "bagging_freq", 0)) if drawn else 0


def setting(settings: Mapping[str, Any], name: str, default: Any) -> Any:
    """A parameter by whichever of LightGBM's names it was given."""
    from lightgbm.basic import _ConfigAliases

    return next((settings[alias] for alias in sorted(_ConfigAliases.get(name)) if alias in settings), default)
