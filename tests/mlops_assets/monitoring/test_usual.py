"""What was usual while training keeps a season from being news, and hides no true shift."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlops_assets.monitoring.drift import DriftResult, drift
from mlops_assets.monitoring.usual import Usual

START, WEEK = datetime(2013, 1, 1, tzinfo=UTC), timedelta(days=7)
WEEKS = 20


def weeks(first: int, last: int) -> pl.DataFrame:
    """Some weeks of 1,000 rows: a temperature that follows the season, and a number that stays."""
    rng = np.random.default_rng(first)
    rows = (last - first) * 1000
    week = first + np.arange(rows) / 1000
    return pl.DataFrame(
        {
            "event_timestamp": [START + float(at) * WEEK for at in week],
            "season": 20 * np.sin(week / 3) + rng.normal(0, 3, rows),
            "steady": rng.normal(0, 1, rows),
            "tags": [[float(x), 1.0] for x in rng.normal(0, 1, rows)],
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


@pytest.fixture(scope="module")
def trained() -> tuple[pl.DataFrame, Usual]:
    rows = weeks(0, WEEKS)
    baseline = rows.drop("event_timestamp").sample(5000, seed=1)
    return baseline, Usual.of(rows, baseline, WEEK)


def judged(trained: tuple[pl.DataFrame, Usual], rows: pl.DataFrame, *, known: bool) -> DriftResult:
    baseline, usual = trained
    usual_psi = usual.psi if known else {}
    return drift(baseline.drop("tags"), rows.drop("tags"), share_limit=0.5, usual=usual_psi)


def test_a_season_is_drift_only_where_it_is_news(trained: tuple[pl.DataFrame, Usual]) -> None:
    """A week is far from the months before it, as every week was: the index says so, the verdict does not."""
    week = weeks(WEEKS, WEEKS + 1)
    before, now = (judged(trained, week, known=known) for known in (False, True))
    assert before.columns[0].psi == now.columns[0].psi
    assert before.columns[0].psi is not None
    assert before.columns[0].psi > 0.2
    assert (before.verdict, now.verdict) == ("drift", "stable")
    assert "over what was usual while training where that is known (2 of 2)" in now.rule
    assert "usual" not in before.rule


@pytest.mark.parametrize("column", ["season", "steady"])
def test_a_true_shift_is_found_all_the_same(trained: tuple[pl.DataFrame, Usual], column: str) -> None:
    """Values that no week of the training had, with the direction that they went."""
    moved = judged(trained, weeks(WEEKS, WEEKS + 1).with_columns(pl.col(column) + 60), known=True)
    assert moved.verdict == "drift"
    assert moved.drifted == (column,)
    assert next(c for c in moved.columns if c.name == column).how.startswith("up, mean ")


def test_every_week_is_measured_and_an_array_as_one_column(trained: tuple[pl.DataFrame, Usual]) -> None:
    """The first week, whose start may be missing, is left out."""
    _, usual = trained
    assert usual.windows == WEEKS - 1
    assert usual.days == 7.0
    assert set(usual.psi) == {"season", "steady", "tags"}
    assert usual.psi["season"] > 0.2 > usual.psi["steady"]


def test_calm_days_without_a_value_are_usual() -> None:
    """An input that is missing on every tenth day is no news on the next such day."""
    rows = weeks(0, 8).with_columns(
        steady=pl.when(pl.col("event_timestamp").dt.ordinal_day() % 10 > 0).then("steady"), tags=pl.lit(1.0)
    )
    usual = Usual.of(rows, rows.drop("event_timestamp"), WEEK)
    assert usual.null_share["steady"] == 1.0
    assert usual.null_share["season"] == 0.0


def test_a_short_history_has_no_habits() -> None:
    """Two weeks say nothing about what a week is like."""
    rows = weeks(0, 2)
    usual = Usual.of(rows, rows.drop("event_timestamp"), WEEK)
    assert usual.psi == {}


def test_it_is_read_from_a_bundle_and_an_older_bundle_has_none(
    trained: tuple[pl.DataFrame, Usual], tmp_path: Path
) -> None:
    """What was written is read; where nothing was, everything is as it was before."""
    assert Usual.read(tmp_path) == Usual()
    (tmp_path / "usual.json").write_text(json.dumps(trained[1].to_json()))
    assert Usual.read(tmp_path) == trained[1]
