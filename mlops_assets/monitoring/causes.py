"""Causes: why a report says what it says, each a line that names the thing, the number and what was before.

Whether the data pipeline changed or the world did is told apart by what it is that moved: values that are missing,
out of their bounds or stood in for are the pipeline's; values that are there and sound, but other ones, the world's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mlops_assets.monitoring.drift import DriftResult
    from mlops_assets.monitoring.performance import PerformanceResult

Of = Literal["pipeline", "world", "model", "machine", "callers"]
NAMED = 8  # columns and slices that are named, the furthest first


@dataclass(frozen=True)
class Cause:
    """What changed: `of` says whose it is, `name` which input, view or slice, `said` how far.

    One that `spoils` makes the features themselves wrong: answers given meanwhile say nothing about the world.
    """

    of: Of
    name: str
    said: str
    spoils: bool = False

    def __str__(self) -> str:
        return f"{self.of}: {self.said}"


def moved(result: DriftResult) -> list[Cause]:
    """The drifted columns, the furthest first, and the prediction where it drifted."""
    columns = {column.name: column for column in result.columns}
    shown = [columns[name] for name in result.drifted[:NAMED]]
    if result.prediction is not None and result.prediction.drifted:
        shown.append(result.prediction)
    causes = []
    for column in shown:
        usual = "" if column.usual is None else f", usual {column.usual:.2f}"
        said = f"{column.name} moved {column.how} (PSI {column.psi:.2f}{usual})"
        causes.append(Cause("world", column.name, said))
    if (rest := len(result.drifted) - NAMED) > 0:
        causes.append(Cause("world", "more", f"{rest} more columns moved"))
    return causes


def lost(result: PerformanceResult) -> list[Cause]:
    """The slices that lost more than the limit, the worst first: by how much, on how many rows."""
    return [
        Cause(
            "model",
            f"{loss.score.group}={loss.score.value}",
            f"{loss.score.group}={loss.score.value} lost {loss.by:.3f} ({result.metric_name} {loss.score.metric:.3f} "
            f"on {loss.score.rows} rows, {loss.reference:.3f} on the holdout)",
        )
        for loss in result.losses[:NAMED]
    ]


def whose(causes: Sequence[Cause]) -> str:
    """One sentence for the head of a report: the pipeline is suspected before the world, the world before the model."""
    found = {cause.of for cause in causes}
    if "pipeline" in found:
        return "The data pipeline changed"
    if "world" in found:
        return "The world changed: inputs are sound and have moved"
    if "model" in found:
        return "The model lost, though its inputs have not moved: what they mean may have changed"
    return "Nothing stands out"


def told(causes: Sequence[Cause]) -> list[str]:
    """As metadata: a list of lines."""
    return [str(cause) for cause in causes]


def sentence(causes: Sequence[Cause], at_most: int = 3) -> str:
    """The first of them in a check's reason."""
    lines = "; ".join(told(causes[:at_most]))
    more = f"; and {len(causes) - at_most} more" if len(causes) > at_most else ""
    return f"{whose(causes)}. {lines}{more}" if causes else ""
