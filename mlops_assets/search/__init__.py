"""Hyperparameter search: draw, judge, write down, keep the best. Optuna's TPE, seeded.

Every trial that starts is a line of the journal when it ends, also the one that fails or is given up (pruned); the
journal is what becomes child runs in MLflow. A search that was broken off runs again only what had not ended.

With one worker a trial is drawn when all before it are known. With more, when all but the last few are: a fixed number
of them, whoever is faster. So a search is made of its seed and its number of workers alone: broken off and gone on
with, or done again on another machine, over processes or over Ray, it tries the same and finds the same.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlops_assets.metrics import Metric, better
from mlops_assets.search.draws import Draws
from mlops_assets.search.hands import Begin, There, hands
from mlops_assets.search.journal import COMPLETE, PRUNED, Line, ended, journalled, keep, note
from mlops_assets.search.trial import Asked, Judge, Judged, Watch, tried

AHEAD = 2  # trials for each worker that may be drawn and not told: with 1, who is done early waits for the others

__all__ = ["Asked", "Found", "Judge", "Judged", "There", "Watch", "best_trial", "journalled", "tried"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The best trial, and the search in numbers: how many trials, what they took alone, what they took together."""

    best: Judged
    document: dict[str, Any]


def best_trial(search: Mapping[str, Any], metric: Metric, judge: Judge, there: There, journal: Path) -> Found:
    """The best of `search["trials"]` draws from `search["space"]`; of equals, the first.

    One trial, or an empty space, judges the trainer's own parameters. `there` does what `judge` does in a worker. A
    trial that fails ends the search with its error. Trials that `journal` holds are not run again: it must be of this
    search. Raises NoWorkerError, WorkerLostError, and of workers WorkFailedError, OtherEnvironmentError.
    """
    before, clock = ended(journal), time.monotonic()
    if before:
        logger.info("%s trials ended before; the search goes on after them", len(before))
    here = partial(tried, search=search, metric=metric, judge=judge, journal=journal)
    with hands(search, here, there, partial(_write, journal, metric)) as begin:
        lines = _searched(search, metric, _Known(journal, before, begin))
    complete = [line for line in lines if line["state"] == COMPLETE]
    best = complete[0]  # the first of all: there was none to give it up by
    for line in complete:
        if better(metric, line["value"], best["value"]):
            best = line
    told = _in_numbers(search, lines, {line["number"] for line in before}, time.monotonic() - clock)
    return Found(Judged(best["params"], best["learned"], best["metrics"]), told)


def _searched(search: Mapping[str, Any], metric: Metric, known: _Known) -> list[Line]:
    """Every trial, in order of number."""
    draws, lines, waiting = Draws(search, metric), list[Line](), deque[Callable[[], Line]]()
    ahead = AHEAD * search["workers"] if search["workers"] > 1 else 1

    def told() -> None:
        lines.append(waiting.popleft()())
        draws.tell(lines[-1])

    for number in range(search["trials"] if search["space"] else 1):
        if len(waiting) == ahead:
            told()
        waiting.append(known.begin(Asked(number, draws.ask(), len(lines))))
    while waiting:
        told()
    return lines


class _Known:
    """Has no trial run again that ended before, as long as what is drawn is what was drawn then."""

    def __init__(self, journal: Path, before: Sequence[Line], begin: Begin) -> None:
        self._journal, self._begin = journal, begin
        self._lines = {line["number"]: line for line in before}
        keep(journal, before)  # what was left of a broken one goes

    def begin(self, asked: Asked) -> Callable[[], Line]:
        line = self._lines.get(asked.number)
        if line is None:
            return self._begin(asked)
        if line["params"] == asked.params:
            return lambda: line
        logger.warning(
            "trial %s was of %s, not of %s: the search goes on from it", asked.number, line["params"], asked.params
        )
        self._lines = {}
        keep(self._journal, [line for line in ended(self._journal) if line["number"] < asked.number])
        return self._begin(asked)


def _write(journal: Path, metric: Metric, line: Line) -> None:
    note(journal, line)
    value = f"{metric.name} {line['value']:.5f}" if line["value"] is not None else "failed"
    said = f"given up after round {line['pruned_at']}" if line["state"] == PRUNED else value
    logger.info("trial %s: %s in %.1f s %s", line["number"], said, line["seconds"], line["params"])


def _in_numbers(search: Mapping[str, Any], lines: Sequence[Line], before: set[int], seconds: float) -> dict[str, Any]:
    """`trial_seconds` is what the trials took that were run now, `speed_up` how many times `seconds` that is."""
    alone = sum(line["seconds"] for line in lines if line["number"] not in before)
    pruned = sum(line["state"] == PRUNED for line in lines)
    logger.info(
        "search: %s trials (%s given up, %s known before) over %s workers in %.1f s, %.1f s of trials: %.2f at a time",
        *(len(lines), pruned, len(before), search["workers"], seconds, alone, alone / seconds),
    )
    numbers = {"seconds": seconds, "trial_seconds": alone, "speed_up": alone / seconds}
    return {"trials": len(lines), "pruned": pruned, "before": len(before), "workers": search["workers"], **numbers}
