"""Causes: the pipeline is told apart from the world, and what moved is named with its direction."""

from __future__ import annotations

import numpy as np
import polars as pl

from mlops_assets.monitoring.causes import Cause, lost, moved, sentence, told, whose
from mlops_assets.monitoring.drift import drift
from mlops_assets.monitoring.performance import performance

PIPELINE = Cause("pipeline", "temp", "temp is missing")
WORLD = Cause("world", "temp", "temp moved")
MODEL = Cause("model", "carrier=UA", "carrier=UA lost")


def test_the_pipeline_is_suspected_before_the_world_and_the_world_before_the_model() -> None:
    """A metric that falls while inputs are missing says nothing of the model."""
    assert whose([MODEL, WORLD, PIPELINE]).startswith("The data pipeline")
    assert whose([MODEL, WORLD]).startswith("The world")
    assert whose([MODEL]).startswith("The model lost")
    assert whose([Cause("machine", "latency", "slow")]) == whose([]) == "Nothing stands out"
    assert sentence([]) == ""
    assert sentence([WORLD, MODEL, WORLD, WORLD]).endswith("; and 1 more")


def test_moved_columns_are_named_with_direction_index_and_what_was_usual() -> None:
    """The furthest first, numbers by their mean, categories by the value that changed most; the prediction last."""
    rng = np.random.default_rng(1)
    rows = 2000
    past = pl.DataFrame(
        {
            "temp": rng.normal(40, 5, rows),
            "wind": rng.normal(10, 2, rows),
            "carrier": rng.choice(["AA", "UA"], rows),
            "still": rng.normal(size=rows),
            "prediction": rng.random(rows) / 2,
        }
    )
    now = past.with_columns(
        pl.col("temp") + 30, pl.col("wind") - 2, carrier=pl.lit("UA"), prediction=pl.col("prediction") + 0.5
    )
    lines = told(moved(drift(past, now, usual={"temp": 0.5})))
    assert len(lines) == 4
    named = {line.split(" moved ")[0].removeprefix("world: "): line for line in lines}
    assert list(named)[-1] == "prediction"
    assert "temp moved up, mean 39.93 -> 69.93" in named["temp"]
    assert "usual 0.50" in named["temp"]
    assert "wind moved down" in named["wind"]
    assert "carrier moved 'AA'" in named["carrier"] or "carrier moved 'UA'" in named["carrier"]
    assert "100.0%" in named["carrier"] or "0.0%" in named["carrier"]


def test_slices_are_held_against_what_they_had_on_the_holdout() -> None:
    """A slice that was always bad has lost nothing; one that was good has, by how much and on how many rows."""
    rng = np.random.default_rng(2)
    rows = 4000
    prediction = rng.random(rows)
    carrier = np.where(np.arange(rows) % 2 == 0, "AA", "UA")
    truth = np.where(carrier == "AA", rng.random(rows) < prediction, rng.random(rows) < 0.5)
    matched = pl.DataFrame(
        {"truth": truth.astype(float), "prediction": prediction, "carrier": carrier, "state": ["matured"] * rows}
    )
    options = {"limit": 0.03, "slices": ["carrier"]}
    always_bad = performance(matched, "roc_auc", 0.8, slice_references={"carrier": {"UA": 0.5, "AA": 0.82}}, **options)  # type: ignore[arg-type]
    was_good = performance(matched, "roc_auc", 0.8, slice_references={"carrier": {"UA": 0.7, "AA": 0.82}}, **options)  # type: ignore[arg-type]
    assert lost(always_bad) == []
    (line,) = told(lost(was_good))
    assert line.startswith("model: carrier=UA lost 0.")
    assert "on 2000 rows, 0.700 on the holdout" in line
    assert was_good.numbers()["metric/carrier=UA"] == was_good.slices[1].metric
