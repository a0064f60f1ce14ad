"""Optuna's side of a search: the study, and its pruners by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from mlops_assets.metrics import Metric

NAME = "search"  # Hyperband deals trials to its brackets by the name of the study
MEDIAN, HYPERBAND = "median", "hyperband"
WARM_UP = 10  # rounds before the median counts: at first, those that learn slowly are behind, whatever they come to


def study(
    metric: Metric, sampler: optuna.samplers.BaseSampler, prune: str | None, rounds: int | None = None
) -> optuna.Study:
    """In memory; `rounds` is for the pruner."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if metric.higher_is_better else "minimize"
    return optuna.create_study(sampler=sampler, pruner=_pruner(prune, rounds), study_name=NAME, direction=direction)


def _pruner(name: str | None, rounds: int | None) -> optuna.pruners.BasePruner:
    """`rounds` is the most that a trial has; without it Hyperband learns it from the first trial that it is told of."""
    import optuna

    if name == MEDIAN:
        return optuna.pruners.MedianPruner(n_warmup_steps=WARM_UP)
    if name == HYPERBAND:
        return optuna.pruners.HyperbandPruner(max_resource=rounds or "auto")
    return optuna.pruners.NopPruner()


def drawn(trial: optuna.Trial, space: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a trial, from ranges and choices as a training's arguments write them."""
    return {name: _drawn(trial, name, domain) for name, domain in space.items()}


def _drawn(trial: optuna.Trial, name: str, domain: Mapping[str, Any]) -> Any:
    if domain["kind"] == "choice":
        return trial.suggest_categorical(name, domain["choices"])
    suggest = trial.suggest_int if domain["kind"] == "int" else trial.suggest_float
    return suggest(name, domain["low"], domain["high"], log=domain["log"])
