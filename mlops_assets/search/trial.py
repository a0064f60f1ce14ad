"""One trial, here or wherever a worker is: a set of parameters goes in, a line of the journal comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.search.journal import COMPLETE, PRUNED, Line, ended
from mlops_assets.search.pruning import Pruning, TrialPrunedError

if TYPE_CHECKING:
    from mlops_assets.metrics import Metric


@dataclass(frozen=True)
class Asked:
    """What is to be tried: it was drawn when the first `known` trials were told, and is judged by them alone."""

    number: int
    params: dict[str, Any]
    known: int

    @property
    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Judged:
    """One set of parameters: what was drawn, what fitting learned, and its metrics on the validation rows."""

    params: dict[str, Any]
    learned: dict[str, Any]
    metrics: dict[str, float]


Watch = Callable[[int, float, bool], None]
"""Told the score of each round, counted from 0, and whether more of it is better; it may end the trial."""
Judge = Callable[[Asked, Watch | None], Judged]


def tried(asked: Asked, search: Mapping[str, Any], metric: Metric, judge: Judge, journal: Path) -> Line:
    """Try it: the line of one that is complete or pruned. Raises what fitting raises."""
    watch = None
    if search["prune"] and search["trials"] > 1:
        before = [line for line in ended(journal) if line["number"] < asked.known]
        watch = Pruning(search["prune"], metric, asked.number, before)
    line, clock = begun(asked), time.monotonic()
    try:
        judged = judge(asked, watch)
    except TrialPrunedError as given_up:
        line |= {"state": PRUNED, "pruned_at": given_up.at}
    else:
        line |= {"value": judged.metrics[metric.name], "state": COMPLETE}
        line |= {"learned": judged.learned, "metrics": judged.metrics}
    return line | (watch.told if watch else {}) | {"seconds": time.monotonic() - clock}


def begun(asked: Asked) -> Line:
    """The line of a trial as it begins."""
    started = datetime.now(UTC).isoformat()
    return {"number": asked.number, "params": asked.params, "value": None, "started_at": started}
