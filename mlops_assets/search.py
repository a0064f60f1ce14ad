"""Hyperparameter search: draw, judge, write down, keep the best. Optuna's TPE, seeded, in memory.

Every trial that starts is a line of the journal when it ends, also the one that fails; the journal is
what becomes child runs in MLflow. A search that was broken off goes on after its last finished trial: the sampler is
told of each again, and so draws what it would have drawn.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from mlops_assets.checkpoints import publish
from mlops_assets.metrics import Metric, better

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """One set of parameters: what was drawn, what fitting learned, and its metrics on the validation rows."""

    params: dict[str, Any]
    learned: dict[str, Any]
    metrics: dict[str, float]


Judge = Callable[[dict[str, Any]], Judged]


def best_trial(search: Mapping[str, Any], metric: Metric, judge: Judge, journal: Path) -> Judged:
    """The best of `search["trials"]` draws from `search["space"]`; of equals, the first.

    One trial, or an empty space, judges the trainer's own parameters. Each line of `journal` holds
    number, params, value, state (COMPLETE or FAIL), started_at, seconds, and what else `Judged` does. A failing
    trial ends the search with its own error. Trials that `journal` holds are not run again: it must be of this search.
    """
    ask, tell = _study(search, metric)
    finished, best = _finished(journal), None
    if finished:
        logger.info("%s trials ended before; the search goes on after them", len(finished))
    for number in range(search["trials"] if search["space"] else 1):
        params = ask()
        if number < len(finished) and finished[number]["params"] != params:
            logger.warning(
                "trial %s was of %s, not of %s: the search goes on from it", number, finished[number], params
            )
            finished = finished[:number]
        if number < len(finished):
            judged = Judged(params, finished[number]["learned"], finished[number]["metrics"])
        else:
            if number == len(finished):  # the first that is run: what was left of a broken one goes
                publish(journal, b"".join(json.dumps(line).encode() + b"\n" for line in finished))
            judged = _trial(number, params, metric, judge, journal)
        value = judged.metrics[metric.name]
        tell(value)
        if best is None or better(metric, value, best.metrics[metric.name]):
            best = judged
    if best is None:
        raise ValueError("A search needs a trial.")
    return best


def journalled(journal: Path) -> list[dict[str, Any]]:
    """The lines of a journal, none where there is none; the last of a search that was killed may be half a line."""
    if not journal.exists():
        return []
    found = []
    for line in journal.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def _finished(journal: Path) -> list[dict[str, Any]]:
    """The trials, from the first on, that need not be run again."""
    return list(takewhile(lambda line: line["state"] == "COMPLETE" and "learned" in line, journalled(journal)))


def _trial(number: int, params: dict[str, Any], metric: Metric, judge: Judge, journal: Path) -> Judged:
    line: dict[str, Any] = {"number": number, "params": params, "value": None, "state": "FAIL"}
    line["started_at"], clock = datetime.now(UTC).isoformat(), time.monotonic()
    try:
        judged = judge(params)
        line |= {"value": judged.metrics[metric.name], "state": "COMPLETE"}
        line |= {"learned": judged.learned, "metrics": judged.metrics}
    finally:
        line["seconds"] = time.monotonic() - clock
        with journal.open("a") as file:
            file.write(json.dumps(line) + "\n")
    logger.info("trial %s: %s %.5f in %.1f s %s", number, metric.name, line["value"], line["seconds"], params)
    return judged


def _study(search: Mapping[str, Any], metric: Metric) -> tuple[Callable[[], dict[str, Any]], Callable[[float], None]]:
    """How to ask for the next parameters, and how to tell what they were worth."""
    if search["trials"] == 1 or not search["space"]:
        return dict, lambda _: None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=search["seed"])
    study = optuna.create_study(sampler=sampler, direction="maximize" if metric.higher_is_better else "minimize")
    asked: list[optuna.Trial] = []

    def ask() -> dict[str, Any]:
        asked.append(study.ask())
        return {name: _drawn(asked[-1], name, domain) for name, domain in search["space"].items()}

    def tell(value: float) -> None:
        study.tell(asked[-1], value)

    return ask, tell


def _drawn(trial: Any, name: str, domain: Mapping[str, Any]) -> Any:
    if domain["kind"] == "choice":
        return trial.suggest_categorical(name, domain["choices"])
    suggest = trial.suggest_int if domain["kind"] == "int" else trial.suggest_float
    return suggest(name, domain["low"], domain["high"], log=domain["log"])
