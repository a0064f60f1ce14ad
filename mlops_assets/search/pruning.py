"""A trial that is worse than those before it were by then is given up, as one of Optuna's pruners says.

Whoever tries decides alone, by the journal of the trials that were told before this one was drawn: so it asks nobody
while it fits, and decides the same whoever else tries at that time. It judges by the score that the trainer watches
for its early stopping (log loss, say), which need not be the metric that the search is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.search.journal import PRUNED, Line
from mlops_assets.search.study import study

if TYPE_CHECKING:
    import optuna

    from mlops_assets.metrics import Metric


class TrialPrunedError(Exception):
    """Ends the fit of a trial that is given up. No error of the trial: the search goes on."""

    at: int  # the round after which

    @classmethod
    def of(cls, number: int, at: int) -> Self:
        told = cls(f"Trial {number} is given up after round {at}.")
        told.at = at
        return told


class Pruning:
    """Told the score of each round of trial `number`, it ends the trial when the pruner says so."""

    def __init__(self, prune: str, metric: Metric, number: int, before: Sequence[Line]) -> None:
        import optuna

        self._number, self._higher = number, metric.higher_is_better
        self._study = study(metric, optuna.samplers.RandomSampler(), prune, _rounds(before))
        known = {line["number"]: line for line in before}
        for at in range(number):
            self._study.add_trial(_told(known[at]) if at in known else _untold())
        self._trial = self._study.ask()
        self.scores: list[tuple[int, float]] = []

    def __call__(self, at: int, score: float, higher_is_better: bool) -> None:
        """Raises TrialPrunedError."""
        told = score if higher_is_better == self._higher else -score  # as the metric counts
        self.scores.append((at, told))
        self._trial.report(told, at)
        if self._trial.should_prune():
            raise TrialPrunedError.of(self._number, at)

    @property
    def told(self) -> dict[str, Any]:
        """What the journal keeps of it, for the trials after it."""
        attributes = self._study.trials[-1].system_attrs
        rungs = {name: value for name, value in attributes.items() if name.startswith("completed_rung")}
        return {"scores": self.scores, "rungs": rungs}


def _rounds(before: Sequence[Line]) -> int | None:
    """As many as the first trial had: there was none that it could be pruned by."""
    return next((line["scores"][-1][0] + 1 for line in before if line["scores"]), None)


def _told(line: Line) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.PRUNED if line["state"] == PRUNED else TrialState.COMPLETE,
        value=line["value"],
        intermediate_values=dict(line["scores"]),
        system_attrs=line["rungs"],
    )


def _untold() -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    return create_trial(state=TrialState.RUNNING)
