"""Reports for people: Evidently's own pages, drawn from samples that are stated, published whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlops_assets.monitoring import evidently_report
from mlops_assets.monitoring.evidently_report import (
    write_drift_report,
    write_performance_report,
    write_quality_report,
)

ROWS = 3_000


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    """Every kind of column a model may have, with nulls; one is constant and one is empty."""
    rng = np.random.default_rng(3)
    present = pl.int_range(ROWS) % 3 > 0
    return pl.DataFrame(
        {
            "temp": rng.normal(60, 10, ROWS),
            "seats": rng.integers(50, 400, ROWS),
            "carrier": rng.choice(["AA", "UA", "B6"], ROWS),
            "holiday": rng.random(ROWS) > 0.9,
            "constant": np.ones(ROWS),
            "prediction": rng.random(ROWS),
        }
    ).with_columns(pl.when(present).then(pl.col("temp", "seats", "carrier", "holiday")), gone=pl.lit(None, pl.Float64))


def test_a_drift_report_is_evidentlys_page_and_says_what_it_is_drawn_from(frame: pl.DataFrame, tmp_path: Path) -> None:
    """Mixed types and nulls are drawn without a warning; the sample is stated at the head; nothing is left beside."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = write_drift_report(
            tmp_path / "2013-07-01" / "drift.html", frame, frame.with_columns(pl.col("temp") + 20), sample=500
        )
    page = path.read_text()
    assert "500 of 3,000 rows" in page and "over all rows" in page
    assert "Drift is detected for 16.667% of columns (1 out of 6)." in page and "prediction" in page
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_performance_report_of_each_task(task: str, tmp_path: Path) -> None:
    """Probabilities against flags, values against values."""
    rng = np.random.default_rng(4)
    prediction = rng.random(ROWS)
    value = prediction + rng.normal(0, 0.3, ROWS)
    truth = value > 0.5 if task == "classification" else value
    path = write_performance_report(tmp_path / "p.html", pl.Series(truth), pl.Series(prediction), task, sample=500)  # type: ignore[arg-type]
    page = path.read_text()
    assert "500 of 3,000 rows" in page
    assert ("RocAuc metric" if task == "classification" else "R2 Score") in page


def test_a_quality_report_shows_both_sides_and_says_its_causes(frame: pl.DataFrame, tmp_path: Path) -> None:
    """The causes stand at the head, as text and not as markup; a column without values is left out of the plots."""
    today = frame.with_columns(temp=pl.lit(None, pl.Float64))
    said = ["broken pipeline.", "pipeline: temp < -60 in 3 % & more"]
    path = write_quality_report(tmp_path / "quality.html", frame, today, sample=500, said=said)
    page = path.read_text()
    assert "<li>pipeline: temp &lt; -60 in 3 % &amp; more</li>" in page
    assert "500 of 3,000 rows" in page and "seats" in page
    with pytest.raises(ValueError, match="no rows to draw"):
        write_quality_report(tmp_path / "none.html", frame, frame.clear())


def test_a_failed_report_leaves_the_old_one(
    frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report is replaced as a whole: one that fails half-way changes nothing and leaves nothing."""
    path = tmp_path / "drift.html"
    path.write_text("the old page")

    def broken(run: object, said: object) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(evidently_report, "_page", broken)
    with pytest.raises(OSError, match="no space left"):
        write_drift_report(path, frame, frame, sample=100)
    assert [found.read_text() for found in tmp_path.iterdir()] == ["the old page"]


def test_columns_without_values_cannot_be_drawn(tmp_path: Path) -> None:
    """An empty day has no picture, and the error says what was there."""
    empty = pl.DataFrame({"x": pl.Series([], dtype=pl.Float64)})
    with pytest.raises(ValueError, match=r"No column has values on both sides \(x\)"):
        write_drift_report(tmp_path / "drift.html", empty, empty)
    assert not list(tmp_path.iterdir())
