"""Which technique does best on which hardware: runs by device and trainer, with what each reached, and took to do so.

Only runs of one model are compared, since another model's metric is another question. Runs of several cutoffs count
alike: who wants a fair race trains the same cutoffs by each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resources.tracking.runs import Run

SECONDS, SPEED, STEP = "seconds_total", "hardware/rows_per_second", "hardware/thermal_step"
MEMORY, GPU_MEMORY = "hardware/peak_memory_gb", "hardware/gpu_peak_memory_gb"
HOT = 2  # the step called serious: from there on a machine slows itself down, and its seconds say less


@dataclass(frozen=True)
class Technique:
    """A trainer on a device: how many runs, what they reached, and medians of what they took; None where not told.

    `is_best` is the best median of its model on its device. `hot` runs were slowed by heat.
    """

    model: str
    device: str
    technique: str
    runs: int
    metric: str
    best: float | None
    median: float | None
    seconds: float | None
    rows_per_second: float | None
    peak_memory_gb: float | None
    gpu_peak_memory_gb: float | None
    hot: int
    is_best: bool = False


def techniques(runs: Sequence[Run], metric_of: Callable[[str], str]) -> list[Technique]:
    """By model and device, the best first; `metric_of` names the metric that a model is judged by."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.experiment, device_of(run), technique_of(run)), []).append(run)
    found = [_technique(*names, metric_of(names[0]), of) for names, of in groups.items()]
    found.sort(key=lambda one: (one.model, one.device, *_rank(one), one.technique))
    leaders: dict[tuple[str, str], Technique] = {}
    for one in found:
        leaders.setdefault((one.model, one.device), one)
    return [replace(one, is_best=one in leaders.values() and _is_judged(one)) for one in found]


def device_of(run: Run) -> str:
    """What it computed on; of runs that do not say, the machine."""
    kind, name = run.tags.get("accelerator"), run.tags.get("device")
    return f"{kind}: {name}" if kind and name else run.tags.get("hardware") or "(not told)"


def technique_of(run: Run) -> str:
    return run.tags.get("trainer") or run.tags.get("framework") or "(not told)"


def _technique(model: str, device: str, technique: str, metric: str, runs: Sequence[Run]) -> Technique:
    def middle(name: str, what: Callable[[list[float]], float] = median) -> float | None:
        values = [run.metrics[name] for run in runs if name in run.metrics]
        return what(values) if values else None

    return Technique(
        model,
        device,
        technique,
        len(runs),
        metric,
        best=middle(metric, min if _higher_is_better(metric) is False else max),
        median=middle(metric),
        seconds=middle(SECONDS),
        rows_per_second=middle(SPEED),
        peak_memory_gb=middle(MEMORY),
        gpu_peak_memory_gb=middle(GPU_MEMORY),
        hot=sum(run.metrics.get(STEP, 0) >= HOT for run in runs),
    )


def _rank(one: Technique) -> tuple[float, float]:
    """The smaller the better: by the metric, of equals by time; what was not judged comes last."""
    if one.median is None:
        return float("inf"), one.seconds or 0.0
    return (one.median if _higher_is_better(one.metric) is False else -one.median), one.seconds or float("inf")


def _is_judged(one: Technique) -> bool:
    return one.median is not None and _higher_is_better(one.metric) is not None


def _higher_is_better(metric: str) -> bool | None:
    """None of a metric that is none of ours, such as one that somebody logged."""
    from mlops_assets.metrics import METRICS

    known = METRICS.get(metric.removeprefix("holdout_").removeprefix("validation_"))
    return known.higher_is_better if known else None
