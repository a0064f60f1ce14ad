"""What each kind of compute costs beyond a direct call: for work that does nothing, and for a training of seconds.

An asset asks, as in production, and the time is the asset's own; the peer is the same function called here. `ray` is
measured with a cluster started for the work, and with one that was there already; `spark` where its file exists. Before
anything is timed, the training is shown to give the same files on every kind, byte for byte.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg
from rich.table import Table

from benchmarks.harness import Figure, Measurement, fresh_home, require_equal, seconds
from resources.compute import ComputeResource, Work, kinds
from resources.compute.ray import cluster

TRIVIAL, TRAINING = "copy:copy", "mlops_assets.training:train"
ROWS, COLUMNS, TREES = 60_000, 20, 300  # about five seconds on two cores
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEEDS = {"ray": "ray", "spark": "pyspark"}  # a kind is measured where its package is installed
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
RAY_UP = "ray, already up"

Ask = Callable[[str, Mapping[str, Any]], float]


def measure(rounds: int = 3) -> Measurement:
    with fresh_home() as home:
        training_set(home / "rows.parquet")
        arguments = partial(training, home)
        taken: dict[str, tuple[float, float]] = {}
        with ExitStack() as stack:
            for kind in measured():
                if kind == RAY_UP:
                    stack.enter_context(cluster("", Work(TRIVIAL, {})))
                ask = partial(asked, kind.partition(",")[0])
                require_equal(f"the model of {kind}", files(home, kind, ask), files(home, "here", direct))
                taken[kind] = (
                    median(ask(TRIVIAL, {}) for _ in range(rounds)),
                    median(ask(TRAINING, arguments(f"{kind}-{at}")) for at in range(rounds)),
                )
        here = (
            median(direct(TRIVIAL, {}) for _ in range(rounds)),
            median(direct(TRAINING, arguments(f"here-{at}")) for at in range(rounds)),
        )
    figures = [
        Figure(f"compute.{kind}.training", times[1], here[1], "the same function called")
        for kind, times in taken.items()
    ]
    return Measurement(figures, [overhead(taken, here)])


def measured() -> list[str]:
    """The kinds that can be had here: Kubernetes has no cluster, and Ray counts twice."""
    known = [kind for kind in kinds() if kind != "kubernetes" and find_spec(NEEDS.get(kind, "dagster"))]
    return sorted(known, key=lambda kind: kind == "ray") + ([RAY_UP] if "ray" in known else [])


def asked(kind: str, entrypoint: str, arguments: Mapping[str, Any]) -> float:
    """Seconds of an asset that has work done on a kind of machine."""
    taken: list[float] = []

    @dg.asset
    def errand(context: dg.AssetExecutionContext, compute: ComputeResource) -> dg.MaterializeResult[None]:
        taken.append(seconds(lambda: compute.run(entrypoint, arguments, context)))
        return dg.MaterializeResult()

    dg.materialize([errand], resources={"compute": ComputeResource(kind=kind)}, run_config=QUIET)
    return taken[0]


def direct(entrypoint: str, arguments: Mapping[str, Any]) -> float:
    from resources.compute import local

    return seconds(lambda: local.run(Work(entrypoint, arguments)))


def overhead(taken: Mapping[str, tuple[float, float]], here: tuple[float, float]) -> Table:
    columns = (
        "kind",
        "trivial work, s",
        "more than a call, s",
        f"training of {here[1]:.1f} s, s",
        "more than a call, s",
    )
    shown = Table(*columns, title=f"Overhead of each kind ({os.cpu_count()} cores)", title_justify="left")
    for kind, (trivial, trained) in taken.items():
        shown.add_row(
            kind, f"{trivial:.2f}", f"{trivial - here[0]:+.2f}", f"{trained:.2f}", f"{trained - here[1]:+.2f}"
        )
    return shown


# -- the training


def files(home: Path, name: str, ask: Ask) -> dict[str, str]:
    """The hashes of a model that was trained by `ask`."""
    from mlops_assets.record import file_hashes

    arguments = training(home, f"{name}-equal")
    if not (Path(arguments["out"]) / "bundle").exists():
        ask(TRAINING, arguments)
    return file_hashes(Path(arguments["out"]) / "bundle" / "model")


def training(home: Path, name: str) -> dict[str, Any]:
    """The arguments of a training in a directory of its own: nothing of another one is taken up."""
    from mlops_assets.training import training_arguments

    return training_arguments(_model(), NOW, home / "rows.parquet", home / "trained" / name)


def _model() -> Any:
    """A model of plain numbers, whose training takes some seconds."""
    from mlops_assets import Bool, Entity, Float64, Gate, ModelPipeline, Search, TimeSplit, labels
    from mlops_assets.trainers import XGBoostClassifier

    request = {f"x{at}": Float64 for at in range(COLUMNS)}

    @labels(key="row", entities=[Entity("group", join_key="group")], targets={"label": Bool}, request=request)
    def outcomes() -> Any:
        """Rows of the benchmark."""

    return ModelPipeline(
        name="overhead",
        team="benchmarks",
        labels=outcomes,
        label="label",
        features=[],
        trainer=XGBoostClassifier(n_estimators=TREES, max_depth=6),
        cutoffs=dg.WeeklyPartitionsDefinition(start_date="2025-01-01"),
        split=TimeSplit(holdout=timedelta(days=7), validation=timedelta(days=7)),
        search=Search(trials=1, space={}),
        gate=Gate("roc_auc", at_least=0.5),
    )


def training_set(path: Path) -> None:
    import numpy as np
    import polars as pl

    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, COLUMNS))
    label = x[:, 0] + x[:, 1] * x[:, 2] + random.normal(scale=2.0, size=ROWS) > 0
    at = [NOW - timedelta(minutes=2 * (ROWS - row)) for row in range(ROWS)]
    told = {"row": [f"{row:06}" for row in range(ROWS)], "group": ["one"] * ROWS, "event_timestamp": at}
    frame = pl.DataFrame({**told, "label_known_at": at, "label": label})
    frame.with_columns(pl.Series(f"x{place}", x[:, place]) for place in range(COLUMNS)).write_parquet(path)
