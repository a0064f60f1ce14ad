"""What a candidate must show before it may become champion: verdicts on its holdout predictions.

Pure: rows and a gate in, verdicts out. Both models are judged on the very same rows, and a refusal
always says by how much.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from mlops_assets.claims import Claim
from mlops_assets.metrics import METRICS, Metric, MetricError

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import Gate
    from mlops_assets.input_schema import InputSchema
    from mlops_assets.trainers import Predictor

PREDICTION = "prediction"
CHAMPION = "champion_prediction"


@dataclass(frozen=True)
class Unjudged:
    """A champion that cannot predict the candidate's rows, and `metric`, the gate's on its own holdout, if known."""

    version: str
    why: str
    metric: float | None


@dataclass(frozen=True)
class Slice:
    """The rows where `column` is `value`, and the metric on them."""

    column: str
    value: str
    rows: int
    metric: float


def judge(
    gate: Gate, label: str, holdout: pl.DataFrame, latency_ms: float, unjudged: Unjudged | None = None
) -> list[Claim]:
    """Every verdict of the gate on a holdout with the columns `label`, `prediction` and the gate's slices.

    The column `champion_prediction` holds what the champion says of the same rows; there is none when
    there is no champion, or one that is `unjudged`. `latency_ms` is the median time of a one-row prediction.
    """
    metric = METRICS[gate.metric]
    value = _measured(metric, holdout, label, PREDICTION)
    return [
        clears_floor(gate, metric, value),
        beats_unjudged(gate, metric, value, unjudged) if unjudged else beats_champion(gate, metric, holdout, label),
        worst_slice(gate, metric, holdout, label),
        predicts_in_time(gate, latency_ms),
    ]


def clears_floor(gate: Gate, metric: Metric, value: float) -> Claim:
    floor = next(bound for bound in (gate.at_least, gate.at_most) if bound is not None)
    words = "at least" if metric.higher_is_better else "at most"
    return Claim(
        "clears_floor",
        metric.gain(value, floor) >= 0,
        f"{metric.name} is {value:.4f}; wanted {words} {floor:g}",
        numbers={"candidate": value, "floor": floor},
    )


def beats_champion(gate: Gate, metric: Metric, holdout: pl.DataFrame, label: str) -> Claim:
    """Better than the champion on the same rows by the gate's margin; passes when there is nothing to beat."""
    name = "beats_champion"
    if gate.beats_champion_by is None:
        return Claim(name, True, "the gate does not ask for it")
    if CHAMPION not in holdout.columns:
        return Claim(name, True, "there is no champion yet")
    candidate, champion = (_measured(metric, holdout, label, column) for column in (PREDICTION, CHAMPION))
    gain = metric.gain(candidate, champion)
    return Claim(
        name,
        gain >= gate.beats_champion_by,
        f"{metric.name} is {candidate:.4f} and the champion's {champion:.4f} on the same {holdout.height} rows: "
        f"better by {gain:+.4f}, wanted {gate.beats_champion_by:+g}",
        numbers={"candidate": candidate, "champion": champion, "gain": gain, "margin": gate.beats_champion_by},
    )


def beats_unjudged(gate: Gate, metric: Metric, candidate: float, champion: Unjudged) -> Claim:
    """The champion's own holdout stands in for rows that it cannot predict; without that number nothing is shown."""
    name, why = "beats_champion", f"the champion (version {champion.version}) cannot predict these rows: {champion.why}"
    if gate.beats_champion_by is None:
        return Claim(name, True, "the gate does not ask for it")
    if champion.metric is None:
        return Claim(
            name,
            False,
            f"{why}; nor was its {metric.name} on this label ever measured. Set the gate's beats_champion_by to None "
            "to let this candidate pass without a comparison, or give the model another name",
        )
    gain = metric.gain(candidate, champion.metric)
    return Claim(
        name,
        gain >= gate.beats_champion_by,
        f"{why}; on its own holdout, which is of other rows, its {metric.name} was {champion.metric:.4f} and the "
        f"candidate's here is {candidate:.4f}: better by {gain:+.4f}, wanted {gate.beats_champion_by:+g}",
        numbers={"candidate": candidate, "champion": champion.metric, "gain": gain, "margin": gate.beats_champion_by},
    )


def worst_slice(gate: Gate, metric: Metric, holdout: pl.DataFrame, label: str) -> Claim:
    """No slice of enough rows is worse than the whole by more than the tolerance, a share of the whole's metric."""
    name, whole = "worst_slice", _measured(metric, holdout, label, PREDICTION)
    slices = [found for column in gate.slices for found in _slices(metric, holdout, label, column, gate.slice_min_rows)]
    if not gate.slices:
        return Claim(name, True, "the gate names no slices")
    if not slices:
        return Claim(name, True, f"no slice of {', '.join(gate.slices)} has {gate.slice_min_rows} usable rows")
    worst = min(slices, key=lambda found: metric.gain(found.metric, whole))
    loss, allowed = -metric.gain(worst.metric, whole), gate.slice_tolerance * abs(whole)
    return Claim(
        name,
        loss <= allowed,
        f"{metric.name} is {worst.metric:.4f} where {worst.column} is {worst.value} ({worst.rows} rows) "
        f"and {whole:.4f} on the whole: worse by {loss:+.4f}, allowed {allowed:.4f}",
        numbers={
            "worst": worst.metric,
            "whole": whole,
            "loss": loss,
            "allowed": allowed,
            "rows": worst.rows,
            "slices": len(slices),
        },
    )


def predicts_in_time(gate: Gate, latency_ms: float) -> Claim:
    return Claim(
        "latency",
        latency_ms <= gate.latency_ms,
        f"one row takes {latency_ms:.3f} ms (median); allowed {gate.latency_ms:g} ms",
        numbers={"latency_ms": latency_ms, "allowed_ms": gate.latency_ms},
    )


def measure_latency(predictor: Predictor, schema: InputSchema, rows: Sequence[Sequence[Any]], rounds: int = 5) -> float:
    """The median milliseconds to encode and predict one row, over `rounds` passes through `rows` after a first one."""
    if not rows:
        raise ValueError("Latency needs at least one row to predict. Give some rows of the holdout.")
    times = []
    for _ in range(rounds + 1):
        for row in rows:
            started = time.perf_counter()
            predictor(schema.encode([row]))
            times.append(time.perf_counter() - started)
    return median(times[len(rows) :]) * 1000


def _measured(metric: Metric, rows: pl.DataFrame, label: str, column: str) -> float:
    import polars as pl

    return metric.compute(rows[label].cast(pl.Float64).to_numpy(), rows[column].to_numpy())


def _slices(metric: Metric, holdout: pl.DataFrame, label: str, column: str, min_rows: int) -> list[Slice]:
    """The slices by one column that hold enough rows for the metric; one class alone has no ranking to judge."""
    found = []
    for (value,), rows in holdout.group_by(column, maintain_order=True):
        if rows.height < min_rows:
            continue
        try:
            found.append(Slice(column, str(value), rows.height, _measured(metric, rows, label, PREDICTION)))
        except MetricError:
            continue
    return found
