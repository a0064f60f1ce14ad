"""Evidently's own HTML reports, for people: plots of what moved and of how well the model does.

They are drawn from samples of at most `SAMPLE` rows a side, as the head of each page says; the numbers
that decide anything come from `drift` and `performance`, over all rows. A report is written beside
its place and renamed, so that a link to it never leads to half a page.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.metrics import Task
from mlops_assets.monitoring.drift import PREDICTION, kind_of
from resources.beside import beside

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 5_000  # 31 columns: 1.8 s to compute and draw (the first report of a process imports Evidently, 6 s more)
SEED = 7
TARGET = "target"


def write_drift_report(
    path: Path,
    reference: pl.DataFrame,
    current: pl.DataFrame,
    *,
    limit: float = 0.2,
    share_limit: float = 0.3,
    sample: int = SAMPLE,
    said: Sequence[str] = (),
) -> Path:
    """Draw the drift of every column of `reference`, the prediction among them, by PSI; `said` is the page's head.

    Columns are typed as `drift` types them. One without a value on a side is left out, as Evidently cannot
    draw it. Raises ValueError where no column is left.
    """
    drawn = [name for name in reference.columns if _has_values(reference[name]) and _has_values(current[name])]
    if not drawn:
        raise ValueError(f"No column has values on both sides ({', '.join(reference.columns)}). Report on more rows.")
    with _evidently():
        from evidently import Report
        from evidently.presets import DataDriftPreset

        definition = _definition(current.select(drawn))
        preset = DataDriftPreset(method="psi", threshold=limit, drift_share=share_limit)
        report = Report([preset], metadata=_provenance(sample, reference=reference, current=current))
        sides = (_dataset(side.select(drawn), definition, sample) for side in (current, reference))
        return _save(report.run(*sides), path, said)


def write_quality_report(
    path: Path, reference: pl.DataFrame, current: pl.DataFrame, *, sample: int = SAMPLE, said: Sequence[str] = ()
) -> Path:
    """Draw what the columns of `reference` hold on both sides: ranges, distributions, missing values.

    Raises ValueError where `current` has no rows.
    """
    if current.is_empty():
        raise ValueError("There are no rows to draw. Report on a day with answers.")
    with _evidently():
        from evidently import Report
        from evidently.presets import DataSummaryPreset

        drawn = [name for name in reference.columns if _has_values(reference[name]) and _has_values(current[name])]
        report = Report([DataSummaryPreset()], metadata=_provenance(sample, reference=reference, current=current))
        definition = _definition(current.select(drawn))
        sides = (_dataset(side.select(drawn), definition, sample) for side in (current, reference))
        return _save(report.run(*sides), path, said)


def write_performance_report(
    path: Path,
    truth: pl.Series,
    prediction: pl.Series,
    task: Task,
    *,
    threshold: float = 0.5,
    sample: int = SAMPLE,
    said: Sequence[str] = (),
) -> Path:
    """Draw how predictions (a probability, a class, or a value) meet the truth, by Evidently's preset of the task."""
    import polars as pl

    met = pl.DataFrame({TARGET: truth, PREDICTION: prediction})
    with _evidently():
        from evidently import Report

        preset, definition = _task_preset(task, threshold)
        report = Report([preset], metadata=_provenance(sample, current=met))
        typed = met.with_columns(pl.col(TARGET).cast(pl.Float64 if task == "regression" else pl.Int64))
        if task == "multiclass":  # as words, or Evidently takes them for probabilities
            typed = typed.cast(pl.Int64).cast(pl.String)
        return _save(report.run(_dataset(typed, definition, sample), None), path, said)


def _definition(frame: pl.DataFrame) -> Any:
    """Its columns typed as `drift` types them."""
    from evidently import DataDefinition

    numeric = [name for name in frame.columns if kind_of(frame[name]) == "numeric"]
    return DataDefinition(
        numerical_columns=numeric, categorical_columns=[name for name in frame.columns if name not in numeric]
    )


def _task_preset(task: str, threshold: float) -> tuple[Any, Any]:
    from evidently import BinaryClassification, DataDefinition, MulticlassClassification, Regression
    from evidently.presets import ClassificationPreset, RegressionPreset

    if task == "multiclass":
        several = MulticlassClassification(target=TARGET, prediction_labels=PREDICTION)
        definition = DataDefinition(classification=[several], categorical_columns=[TARGET, PREDICTION])
        return ClassificationPreset(), definition
    if task == "classification":
        classes = BinaryClassification(target=TARGET, prediction_probas=PREDICTION)
        definition = DataDefinition(
            classification=[classes], categorical_columns=[TARGET], numerical_columns=[PREDICTION]
        )
        return ClassificationPreset(probas_threshold=threshold), definition
    values = DataDefinition(
        regression=[Regression(target=TARGET, prediction=PREDICTION)], numerical_columns=[TARGET, PREDICTION]
    )
    return RegressionPreset(), values


@contextmanager
def _evidently() -> Iterator[None]:
    """Evidently sends nothing home, and what it and its libraries warn about stays with them."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _dataset(frame: pl.DataFrame, definition: Any, sample: int) -> Any:
    from evidently import Dataset

    bounded = frame if frame.height <= sample else frame.sample(sample, seed=SEED)
    return Dataset.from_pandas(bounded.to_pandas(), data_definition=definition)


def _provenance(sample: int, **frames: pl.DataFrame) -> dict[str, str]:
    """What the picture is drawn from."""
    drawn = {side: f"{min(frame.height, sample):,} of {frame.height:,} rows" for side, frame in frames.items()}
    return drawn | {"note": "Drawn from a sample. The verdict is computed over all rows, not from this page."}


def _has_values(column: pl.Series) -> bool:
    return column.null_count() < len(column)


def _save(run: Any, path: Path, said: Sequence[str] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as place:
        place.write_text(_page(run, said), encoding="utf-8")
    return path


def _page(run: Any, said: Sequence[str] = ()) -> str:
    """Evidently's page with what is `said`, and its metadata at the head, which Evidently leaves out of HTML."""
    drawn = " &middot; ".join(f"{name}: {value}" for name, value in run.dump_dict()["metadata"].items())
    lines = "".join(f"<li>{escape(line)}</li>" for line in said)
    head = f'<div style="font: 14px sans-serif; margin: 1em"><ul>{lines}</ul><p>{drawn}</p></div>'
    html: str = run.get_html_str(as_iframe=False)
    return html.replace("<body>", f"<body>\n{head}", 1)
