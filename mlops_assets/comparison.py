"""Champion and challenger of a canary on the same rows: every logged request of the step, predicted by both.

A step's traffic is split, so what each variant answered is of other rows, and on a few hundred rows a metric differs
by chance more than two models do. Here both bundles predict all of them, from the features as they were used, which
takes out the chance of who was asked; the chance of which rows came is told by an interval, a paired bootstrap that
draws the same rows for both. Labels count that were known at the newest moment asked about, whatever the clock says.

Only ever imported at run time, hence numpy and polars at the top.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from mlops_assets.declarations import KNOWN_AT, ModelPipeline
from mlops_assets.fields import Field
from mlops_assets.input_schema import InputError, InputSchema
from mlops_assets.metrics import Metric, MetricError
from mlops_assets.monitoring.drift import column_drift
from resources.lake import NotMaterializedError
from sensors.rollout import Compared

if TYPE_CHECKING:
    from resources.lake import Lake

Numbers = npt.NDArray[np.float64]

CHAMPION, CHALLENGER, TRUTH = "champion", "challenger", "truth"
ROWS = 20_000  # the newest that are predicted by both
LABELLED = 5_000  # the newest of them with a label that the interval is drawn from: some seconds of one CPU
RESAMPLES, SEED = 400, 7
TAIL = 2.5  # percent on each side of the interval
CUT = 0.5  # a probability from here on is a yes
FAR = 0.5  # of the champion's standard deviation: a value further off is another one


@dataclass(frozen=True)
class Bundle:
    """What is compared: a release, its bundle, and the inputs it needs, with their types."""

    release: str
    path: Path
    task: str
    label: str
    inputs: Mapping[str, pl.DataType]

    @classmethod
    def at(cls, release: str, path: Path) -> Bundle:
        manifest = json.loads((path / "manifest.json").read_bytes())
        schema = InputSchema.from_json(json.loads((path / "schema.json").read_bytes()))
        types = {column.name: Field(column.dtype, size=column.size).polars for column in schema.columns}
        return cls(release, path, manifest["task"], manifest["label"], types)


class IncomparableError(ValueError):
    """Two releases that no request can be asked of alike."""

    @classmethod
    def of(cls, champion: Bundle, challenger: Bundle, why: str) -> IncomparableError:
        return cls(f"{champion.release} and {challenger.release} cannot be compared on the same rows: {why}")


def input_types(bundles: Sequence[Bundle]) -> dict[str, pl.DataType]:
    """What to read of the log."""
    return {name: dtype for bundle in bundles for name, dtype in bundle.inputs.items()}


def same_rows(answers: pl.DataFrame, champion: Bundle, challenger: Bundle) -> pl.DataFrame:
    """The requests that hold every input of both, each once, with what both bundles predict of them.

    A request's line holds the inputs of the release that answered it; where only the other one reads a feature, its
    lines are the ones that both can be asked. Raises IncomparableError when there are none, or none can be.
    """
    from mlops_assets.training import evaluate

    for what in ("task", "label"):
        if getattr(champion, what) != getattr(challenger, what):
            raise IncomparableError.of(champion, challenger, f"one's {what} is not the other's")
    needed = {*champion.inputs, *challenger.inputs}
    whole = [bundle.release for bundle in (champion, challenger) if needed <= {*bundle.inputs}]
    if not whole:
        apart = sorted({*champion.inputs} ^ {*challenger.inputs})
        raise IncomparableError.of(champion, challenger, f"each reads what the other does not ({', '.join(apart)})")
    rows = answers.filter(pl.col("release").is_in(whole)).unique("request_id", keep="last", maintain_order=True)
    rows = rows.sort("at", maintain_order=True).tail(ROWS)
    try:
        return rows.with_columns(
            evaluate(champion.path, rows).alias(CHAMPION), evaluate(challenger.path, rows).alias(CHALLENGER)
        )
    except InputError as problem:
        raise IncomparableError.of(champion, challenger, str(problem)) from problem


def with_truth(rows: pl.DataFrame, model: ModelPipeline, lake: Lake) -> pl.DataFrame:
    """The rows with their `truth`, null where it was not known by the newest moment that the rows ask about."""
    from mlops_assets.catalog import asset_key

    try:
        labels = lake.scan(asset_key(model.labels), _days(rows) if model.labels.partitions else None)
    except NotMaterializedError:
        return rows.with_columns(pl.lit(None, pl.Float64).alias(TRUTH))
    known = labels.filter(pl.col(KNOWN_AT) <= rows["at"].max()).select(
        request_id=model.labels.key, truth=pl.col(model.label).cast(pl.Float64)
    )
    return rows.join(known.collect(), on="request_id", how="left", maintain_order="left")


def _days(rows: pl.DataFrame) -> list[str]:
    """The days asked about, and the next: an event may be asked about on the evening before it."""
    days = rows["at"].dt.date().unique()
    return sorted({str(day + timedelta(days=more)) for day in days for more in (0, 1)})


def compare(rows: pl.DataFrame, metric: Metric, min_labels: int) -> Compared:
    """Judge rows with what `champion` and `challenger` predict of them and the `truth`, null where it is not known."""
    known = rows.drop_nulls(TRUTH)
    champion, challenger = rows[CHAMPION].to_numpy(), rows[CHALLENGER].to_numpy()
    said = Compared(
        rows=rows.height,
        labels=known.height,
        metric_name=metric.name,
        changed=changed(champion, challenger, metric) if rows.height else None,
        psi=_psi(rows, metric),
        seconds=_spanned(rows),
    )
    if known.height < max(min_labels, 1):
        return said
    try:
        return _judged(said, known.tail(LABELLED), metric)
    except MetricError:  # one class alone so far
        return said


def _psi(rows: pl.DataFrame, metric: Metric) -> float | None:
    """How far apart the answers lie as a whole; classes are compared one by one."""
    if metric.task == "multiclass":
        rows = rows.with_columns(pl.col(CHAMPION, CHALLENGER).cast(pl.Int64).cast(pl.String))
    return column_drift(rows[CHAMPION], rows[CHALLENGER]).psi


def changed(champion: Numbers, challenger: Numbers, metric: Metric) -> float:
    """The share of rows that both decide otherwise: another side of one half, another class, or values far apart."""
    if metric.task == "classification":
        return float(((champion >= CUT) != (challenger >= CUT)).mean())
    if metric.task == "multiclass":
        return float((champion != challenger).mean())
    return float((np.abs(champion - challenger) > FAR * champion.std()).mean())


def interval(truth: Numbers, champion: Numbers, challenger: Numbers, metric: Metric) -> tuple[float, float]:
    """Where the challenger's gain lies in 95 of 100 draws of as many rows, the same rows for both.

    A draw of one class alone says nothing and is left out. Seeded: the same rows give the same interval.
    """
    generator, gains = np.random.default_rng(SEED), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(truth), len(truth))
        try:
            gains.append(_gain(truth[drawn], champion[drawn], challenger[drawn], metric))
        except MetricError:
            continue
    if not gains:
        raise MetricError.of(metric.name, f"no draw of {len(truth)} rows defines it", "Take more rows.")
    low, high = np.percentile(gains, [TAIL, 100 - TAIL])
    return float(low), float(high)


def _judged(said: Compared, known: pl.DataFrame, metric: Metric) -> Compared:
    truth, champion, challenger = (known[name].to_numpy() for name in (TRUTH, CHAMPION, CHALLENGER))
    told: dict[str, Any] = {
        **vars(said),
        "champion": metric.compute(truth, champion),
        "challenger": metric.compute(truth, challenger),
        "gain": _gain(truth, champion, challenger, metric),
        "interval": interval(truth, champion, challenger, metric),
    }
    return Compared(**told)


def _gain(truth: Numbers, champion: Numbers, challenger: Numbers, metric: Metric) -> float:
    return metric.gain(metric.compute(truth, challenger), metric.compute(truth, champion))


def _spanned(rows: pl.DataFrame) -> float:
    """How long the step lasts, by what was asked about."""
    return float(rows.select((pl.col("at").max() - pl.col("at").min()).dt.total_microseconds()).item() or 0) / 1e6
