"""What is drawn, and what is made of it: Optuna's TPE, seeded, in memory, asked and told in order of number.

Trials that were asked for and not told yet count as bad ones (constant liar), so that those tried at the same time
are not alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlops_assets.search.journal import PRUNED, Line
from mlops_assets.search.study import drawn, study

if TYPE_CHECKING:
    import optuna

    from mlops_assets.metrics import Metric


class Draws:
    """The parameters of one trial after the other; nothing is drawn for one trial, or without a space."""

    def __init__(self, search: Mapping[str, Any], metric: Metric) -> None:
        self._space = search["space"] if search["trials"] > 1 else {}
        self._asked: dict[int, optuna.Trial] = {}
        if self._space:
            import optuna

            self._study = study(metric, optuna.samplers.TPESampler(seed=search["seed"]), search["prune"])

    def ask(self) -> dict[str, Any]:
        if not self._space:
            return {}
        trial = self._study.ask()
        self._asked[trial.number] = trial
        return drawn(trial, self._space)

    def tell(self, line: Line) -> None:
        """What a trial came to, by its journal."""
        if not self._space:
            return
        from optuna.trial import TrialState

        trial = self._asked.pop(line["number"])
        for at, score in line.get("scores", ()):
            trial.report(score, at)
            trial.should_prune()  # for what the pruner remembers of it: who tried has decided already
        if line["state"] == PRUNED:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, line["value"])
