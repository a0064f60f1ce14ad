"""Drift of 1,000,000 answers of 20 columns: every column's PSI, ours against Evidently's preset on the same rows.

Both read columns in memory, Evidently's in pandas by then, and are told the same column types; every index is compared
before anything of ours is timed. Evidently draws a page as well when it is asked to; here it is not. Each side is
measured by the clock and by the CPU time of its process, which a busy machine leaves nearly alone.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Self

import numpy as np
import polars as pl
from rich.table import Table

from benchmarks.harness import Figure, Measurement, UnequalResultsError, seconds
from mlops_assets.monitoring.drift import DriftResult, drift, kind_of
from resources.environment import quiet_telemetry

ROWS = 1_000_000
ROUNDS = 9
TOLERANCE = 1e-6
TARGET = 1 / 100
PEER = "Evidently's DataDriftPreset(method='psi')"


@dataclass(frozen=True)
class Spent:
    """Seconds."""

    clock: float
    cpu: float

    @classmethod
    def by(cls, work: Callable[[], object]) -> Self:
        cpu = time.process_time()
        clock = seconds(work)
        return cls(clock, time.process_time() - cpu)


def measure(rows: int = ROWS) -> Measurement:
    """Evidently runs once; ours so often as it takes to be sure, on one thread and on all CPUs."""
    reference, current = answers(rows, moved=0.0), answers(rows, moved=0.1)
    theirs, peer = evidently_psi(reference, current)
    _require_equal(drift(reference, current), theirs)
    figures = []
    for threads in sorted({1, os.cpu_count() or 1}):
        ours, name = (
            _median(partial(drift, reference, current, threads=threads)),
            f"drift.{rows}_rows.{threads}_threads",
        )
        figures.append(Figure(name, ours.clock, peer.clock, PEER, "s", TARGET))
        figures.append(Figure(f"{name}.cpu", ours.cpu, peer.cpu, PEER, "CPU s"))
    times = [f"{figure.name}: {1 / figure.ratio:.0f} times as fast by {figure.unit}" for figure in figures]
    return Measurement(figures, [*times, _by_column(reference, current)])


def answers(rows: int, moved: float) -> pl.DataFrame:
    """As answers are: numbers with and without ties and nulls, whole numbers, few values, texts, a flag."""
    rng = np.random.default_rng(round(1000 * moved))
    normal = {f"number_{place}": rng.normal(moved * place, 1.0, rows) for place in range(7)}
    tied = {
        f"tied_{place}": np.where(rng.random(rows) < 0.9, 0.0, rng.exponential(1 + moved, rows)) for place in range(2)
    }
    counts = {f"count_{place}": rng.poisson(20 * (place + 1) * (1 + moved), rows) for place in range(4)}
    few = {f"few_{place}": rng.binomial(6, 0.3 + moved, rows) for place in range(2)}
    texts = {f"text_{size}": _texts(rng, rows, size, moved) for size in (5, 16, 300)}
    frame = pl.DataFrame({**normal, **tied, **counts, **few, **texts, "flag": rng.random(rows) < 0.3 + moved})
    gone = pl.Series(rng.random(rows) < 0.05)
    return frame.with_columns(pl.when(~gone).then("number_0").alias("missing"))


def _texts(rng: np.random.Generator, rows: int, size: int, moved: float) -> pl.Series:
    weights = np.arange(1, size + 1) ** -(0.5 + moved)
    names = pl.Series([f"value {place}" for place in range(size)])
    return names.gather(rng.choice(size, rows, p=weights / weights.sum()))


def evidently_psi(reference: pl.DataFrame, current: pl.DataFrame) -> tuple[dict[str, float], Spent]:
    """By column, from the preset, and what it took."""
    quiet_telemetry()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        numeric = [name for name in reference.columns if kind_of(current[name]) == "numeric"]
        others = [name for name in reference.columns if name not in numeric]
        definition = DataDefinition(numerical_columns=numeric, categorical_columns=others)
        sides = [Dataset.from_pandas(side.to_pandas(), data_definition=definition) for side in (current, reference)]
        report, runs = Report([DataDriftPreset(method="psi")]), []
        spent = Spent.by(lambda: runs.append(report.run(*sides)))
        metrics = runs[0].dict()["metrics"]
    found = {one["config"]["column"]: one["value"] for one in metrics if "ValueDrift" in one["config"]["type"]}
    return found, spent


def _require_equal(ours: DriftResult, theirs: dict[str, float]) -> None:
    found = {column.name: column.psi for column in ours.columns}
    far = {name: (found[name], theirs.get(name)) for name in found if not _near(found[name], theirs.get(name))}
    if far or set(found) != set(theirs):
        raise UnequalResultsError.of("the PSI of some columns", far, sorted(set(found) ^ set(theirs)))


def _near(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= TOLERANCE


def _median(work: partial[DriftResult]) -> Spent:
    rounds = [Spent.by(work) for _ in range(ROUNDS)]
    return Spent(median(one.clock for one in rounds), median(one.cpu for one in rounds))


def _by_column(reference: pl.DataFrame, current: pl.DataFrame) -> Table:
    """Where our time goes, one column after the other on one thread."""
    shown = Table("column", "kind", "PSI", "CPU ms", title="ours, by column")
    for name in reference.columns:
        pair = reference.select(name), current.select(name)
        (column,) = drift(*pair).columns
        spent = _median(partial(drift, *pair, threads=1))
        shown.add_row(name, column.kind, f"{column.psi:.4f}", f"{1e3 * spent.cpu:.1f}")
    return shown
