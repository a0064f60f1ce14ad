"""What two workers make of a search: the same number of fits, of one thread each, one after the other and two at once.

The parameters that are drawn decide nothing about how long a fit takes, since one worker and two draw others; the
first is the same, and must come to the same value. What workers cost is told besides: they draw with fewer results
known, so that as many trials may find a little less.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rich.table import Table

from benchmarks.harness import Figure, Measurement, require_equal
from mlops_assets.metrics import METRICS
from mlops_assets.search import AHEAD, Asked, Found, Judged, There, Watch, best_trial, journalled, tried
from mlops_assets.search.draws import Draws

if TYPE_CHECKING:
    import numpy as np

TRIALS, ROWS, COLUMNS, ROUNDS = 12, 40_000, 30, 120
SPACE = {
    "learning_rate": {"kind": "float", "low": 0.003, "high": 0.5, "log": True},
    "reg_lambda": {"kind": "float", "low": 0.1, "high": 20.0, "log": True},
}
SEARCH = {"trials": TRIALS, "seed": 7, "space": SPACE, "workers": 1, "prune": None, "over": "processes"}
METRIC = METRICS["roc_auc"]
TARGET = 1 / 1.6
SEEDS = 30


def measure() -> Measurement:
    searches = {
        "one worker": SEARCH,
        "two processes": {**SEARCH, "workers": 2},
        "one worker, median": {**SEARCH, "prune": "median"},
        "two processes, median": {**SEARCH, "workers": 2, "prune": "median"},
    }
    with TemporaryDirectory(prefix="mlops-benchmark-") as directory:
        _write_rows(Path(directory))
        found = {name: _searched(search, Path(directory), name) for name, search in searches.items()}
        with _cluster():
            search = {**SEARCH, "workers": 2, "over": "ray"}
            found["two tasks of Ray"] = _searched(search, Path(directory), "two tasks of Ray")
        firsts = {journalled(Path(directory) / f"{name}.jsonl")[0]["value"] for name in found}
        require_equal("the first trial", len(firsts), 1)
        journals = [json.dumps(_tried(Path(directory), name)) for name in ("two processes", "two tasks of Ray")]
        require_equal("what two workers try", *journals)
    seconds = {name: one.document["seconds"] for name, one in found.items()}
    one = seconds["one worker"]
    figures = [
        Figure("search.two_processes", seconds["two processes"], one, "one worker", target=TARGET),
        Figure("search.two_tasks_of_ray", seconds["two tasks of Ray"], one, "one worker", target=TARGET),
        Figure("search.median", seconds["one worker, median"], one, "nothing given up"),
        Figure("search.two_processes_and_median", seconds["two processes, median"], one, "one, nothing given up"),
    ]
    return Measurement(figures, [_told(found), _quality()])


def trial(given: Mapping[str, Any]) -> dict[str, Any]:
    """One trial in a worker."""
    arguments = given["arguments"]
    return tried(Asked(**given["trial"]), arguments["search"], METRIC, _judge(arguments["rows"]), _path(arguments))


def _searched(search: dict[str, Any], directory: Path, name: str) -> Found:
    arguments = {"search": search, "rows": str(directory), "journal": str(directory / f"{name}.jsonl")}
    with patch.dict(os.environ, OMP_NUM_THREADS=str(search["workers"])):
        there = There("benchmarks.search:trial", arguments)
        return best_trial(search, METRIC, _judge(str(directory)), there, _path(arguments))


def _path(arguments: Mapping[str, Any]) -> Path:
    return Path(arguments["journal"])


def _judge(directory: str) -> Any:
    from mlops_assets.checkpoints import Progress
    from mlops_assets.trainers import trainer_named

    trainer = trainer_named("XGBoostClassifier", n_estimators=ROUNDS, max_depth=7, early_stopping_rounds=ROUNDS)

    def judge(asked: Asked, watch: Watch | None) -> Judged:
        import xgboost as xgb

        x, y, x_valid, y_valid = _rows(directory)
        model = trainer.fit(x, y, x_valid, y_valid, asked.params, 7, Progress(watch=watch))
        told = model.predict(xgb.DMatrix(x_valid))
        return Judged(asked.params, {}, {METRIC.name: METRIC.compute(y_valid, told.astype("float64"))})

    return judge


@cache
def _rows(directory: str) -> tuple[np.ndarray, ...]:
    import numpy as np

    x, y = np.load(Path(directory) / "x.npy"), np.load(Path(directory) / "y.npy")
    half = ROWS * 4 // 5
    return x[:half], y[:half], x[half:], y[half:]


def _write_rows(directory: Path) -> None:
    import numpy as np

    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    y = x[:, 0] + x[:, 1] * x[:, 2] + random.normal(scale=2.0, size=ROWS) > 0
    np.save(directory / "x.npy", x)
    np.save(directory / "y.npy", y.astype(np.float64))


@contextmanager
def _cluster() -> Iterator[None]:
    """A Ray cluster of two cores on this machine, started before the clock."""
    import ray

    from resources.compute.ray import OURS

    with patch.dict(os.environ, OURS):
        path = {"env_vars": {"PYTHONPATH": str(Path.cwd())}}
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=path)
        try:
            yield
        finally:
            ray.shutdown()


def _tried(directory: Path, name: str) -> list[Any]:
    return [(line["params"], line["value"]) for line in journalled(directory / f"{name}.jsonl")]


def _told(found: Mapping[str, Found]) -> Table:
    columns = ("search", "seconds", "seconds of its trials", "at a time", "given up", "best")
    shown = Table(*columns, title=f"{TRIALS} trials of {ROUNDS} rounds, one thread each", title_justify="left")
    for name, one in found.items():
        told = one.document
        numbers = (f"{told['seconds']:.1f}", f"{told['trial_seconds']:.1f}", f"{told['speed_up']:.2f}")
        shown.add_row(name, *numbers, str(told["pruned"]), f"{one.best.metrics[METRIC.name]:.5f}")
    return shown


# -- what is drawn with fewer results known


def _quality() -> Table:
    """The best of 40 trials of a function with its best, 1, at one point: the mean of several seeds."""
    title = f"best of 40 trials of a test function, the mean of {SEEDS} seeds (1 is the most)"
    shown = Table("workers", "drawn and not known", "best", title=title, title_justify="left")
    for workers in (1, 2, 4, 8):
        ahead = AHEAD * workers if workers > 1 else 1
        best = mean(_best({**SEARCH, "trials": 40, "seed": seed}, ahead) for seed in range(SEEDS))
        shown.add_row(str(workers), f"at most {ahead - 1}", f"{best:.4f}")
    return shown


def _best(search: dict[str, Any], ahead: int) -> float:
    import math

    draws, lines = Draws(search, METRIC), list[dict[str, Any]]()
    for number in range(search["trials"]):
        params = draws.ask()
        rate, weight = math.log10(params["learning_rate"]), math.log10(params["reg_lambda"])
        value = 1 - (rate + 1.1) ** 2 - (weight - 0.6) ** 2 - (rate + 1.1) * (weight - 0.6)
        lines.append({"number": number, "value": value, "state": "COMPLETE"})
        if number >= ahead - 1:
            draws.tell(lines[number - ahead + 1])
    return max(float(line["value"]) for line in lines)
