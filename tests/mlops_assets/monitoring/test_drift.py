"""Drift: the numbers are Evidently's, whatever the column, and rows have no order."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlops_assets.monitoring.drift import IncomparableColumnsError, column_drift, drift, present

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
column = st.one_of(
    st.lists(finite, min_size=1, max_size=200).map(lambda v: pl.Series("x", v, pl.Float64)),
    st.lists(st.sampled_from([0.0, 0.5, 10.0]), min_size=1, max_size=200).map(lambda v: pl.Series("x", v, pl.Float64)),
    st.lists(st.integers(-40, 40) | st.none(), min_size=1, max_size=200).map(lambda v: pl.Series("x", v, pl.Int64)),
    st.lists(st.integers(0, 8), min_size=1, max_size=200).map(lambda v: pl.Series("x", v, pl.Int64)),
)
words = st.lists(st.sampled_from("abcde") | st.none(), min_size=1, max_size=200)
labels = words.map(lambda v: pl.Series("x", v, pl.String))
flags = st.lists(st.booleans(), min_size=1, max_size=200).map(lambda v: pl.Series("x", v, pl.Boolean))


def evidently_psi(reference: pl.Series, current: pl.Series) -> float:
    """What Evidently computes for one column: its own type inference, cleaning and statistic."""
    from evidently.core.datasets import infer_column_type
    from evidently.legacy.calculations.stattests import psi_stat_test
    from evidently.legacy.core import ColumnType

    past, now = reference.to_pandas(), current.to_pandas()
    kind = infer_column_type(now)
    kind = ColumnType.Categorical if kind in (ColumnType.Text, ColumnType.Unknown) else kind
    clean = [values.replace([-np.inf, np.inf], np.nan).dropna() for values in (past, now)]
    return float(psi_stat_test(clean[0], clean[1], kind, 0.2).drift_score)


def evidently_preset(reference: pl.DataFrame, current: pl.DataFrame) -> dict[str, float]:
    """Each column's score from the preset that users run, with nothing told about types."""
    from evidently import Dataset, Report
    from evidently.presets import DataDriftPreset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Report([DataDriftPreset(method="psi")]).run(
            Dataset.from_pandas(current.to_pandas()), Dataset.from_pandas(reference.to_pandas())
        )
    metrics: list[dict[str, Any]] = run.dict()["metrics"]
    return {m["config"]["column"]: m["value"] for m in metrics if "ValueDrift" in m["config"]["type"]}


def assert_equal_to_preset(reference: pl.DataFrame, current: pl.DataFrame) -> None:
    theirs = evidently_preset(reference, current)
    ours = {c.name: c.psi for c in drift(reference, current).columns}
    assert set(theirs) == set(ours)
    assert ours == pytest.approx(theirs, abs=1e-6, rel=0)


def test_psi_of_real_flights_is_evidentlys(flights: pl.DataFrame) -> None:
    """Winter against summer: integers with nulls, heavy ties, few values, strings, a boolean."""
    inputs = flights.drop("time_hour", "year").with_columns(late=(pl.col("arr_delay") > 30).fill_null(False))
    assert_equal_to_preset(inputs.filter(pl.col("month") <= 2), inputs.filter(pl.col("month") == 7))


def test_psi_of_real_weather_is_evidentlys(weather: pl.DataFrame) -> None:
    """Floats that are nearly always zero (precip), capped (visib), or mostly missing (wind_gust)."""
    inputs = weather.drop("time_hour", "year")
    assert_equal_to_preset(inputs.filter(pl.col("month") <= 2), inputs.filter(pl.col("month") == 7))


@settings(max_examples=150)
@given(st.tuples(column, column) | st.tuples(labels, labels) | st.tuples(flags, flags))
def test_psi_is_evidentlys_for_any_column(pair: tuple[pl.Series, pl.Series]) -> None:
    """Any mix of ties, nulls, integers and floats gives Evidently's number."""
    reference, current = pair
    assume(len(present(reference)) and len(present(current)))
    ours = column_drift(reference, current).psi
    assert ours == pytest.approx(evidently_psi(reference, current), abs=1e-6, rel=1e-9)


@settings(max_examples=50)
@given(column | labels | flags)
def test_equal_samples_have_not_moved(values: pl.Series) -> None:
    """PSI of a sample against itself is exactly zero."""
    assume(len(present(values)))
    assert column_drift(values, values).psi == 0.0


@settings(max_examples=50)
@given(st.tuples(labels, labels) | st.tuples(flags, flags))
def test_psi_of_categories_is_symmetric(pair: tuple[pl.Series, pl.Series]) -> None:
    """Which side is called the reference does not matter where both are counted value by value."""
    assume(all(len(present(side)) for side in pair))
    one, other = pair
    assert column_drift(one, other).psi == pytest.approx(column_drift(other, one).psi)


@settings(max_examples=50)
@given(st.tuples(column, column) | st.tuples(labels, labels), st.randoms(use_true_random=False))
def test_the_order_of_rows_never_changes_the_number(pair: tuple[pl.Series, pl.Series], random: Any) -> None:
    """Shuffled rows give the same index to the last bit."""
    assume(all(len(present(side)) for side in pair))
    past, now = pair
    mixed_past, mixed_now = (side.sample(fraction=1.0, shuffle=True, seed=random.randint(0, 2**31)) for side in pair)
    assert column_drift(past, now) == column_drift(mixed_past, mixed_now)


def test_psi_grows_with_the_shift() -> None:
    """The further a normal sample is moved, the larger its index."""
    rng = np.random.default_rng(1)
    base = pl.Series("x", rng.normal(size=20_000))
    indices = [column_drift(base, base + shift).psi or 0.0 for shift in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert indices == sorted(indices) and len(set(indices)) == 5


def test_infinity_and_nan_count_as_missing() -> None:
    """What Evidently leaves out of the index is told in the null share."""
    current = pl.Series("x", [1.0, 2.0, math.inf, -math.inf, math.nan, None, 3.0, 4.0])
    moved = column_drift(pl.Series("x", [1.0, 2.0, 3.0, 4.0]), current)
    assert moved.psi == 0.0
    assert (moved.null_share_reference, moved.null_share_current, moved.null_share_change) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize("dtype", [pl.Float64, pl.Null], ids=["typed", "as read from JSON"])
def test_a_column_gone_missing_has_no_index_and_is_no_drift(dtype: type[pl.DataType]) -> None:
    """An outage is told by its null share; it is not a change of the world."""
    reference = pl.DataFrame({"x": np.arange(600.0)})
    result = drift(reference, reference.with_columns(x=pl.lit(None, dtype)))
    assert result.verdict == "stable"
    assert (result.columns[0].psi, result.columns[0].null_share_change) == (None, 1.0)


def test_the_verdict_is_the_share_of_drifted_inputs() -> None:
    """One of four moved: drift at a limit of a quarter, none at a third; the prediction stands beside."""
    rng = np.random.default_rng(2)
    reference = pl.DataFrame({name: rng.normal(size=1_000) for name in ("a", "b", "c", "d", "prediction")})
    current = reference.with_columns(pl.col("a", "prediction") + 3)
    strict, lax = (drift(reference, current, share_limit=limit) for limit in (0.25, 1 / 3))
    assert (strict.verdict, lax.verdict, strict.drifted, strict.drifted_share) == ("drift", "stable", ("a",), 0.25)
    assert strict.prediction is not None and strict.prediction.drifted
    assert strict.numbers()["psi_max"] == strict.columns[0].psi
    assert strict.table()["column"].to_list() == ["a", "b", "c", "d", "prediction"]


@pytest.mark.parametrize("rows", [0, 1, 499])
def test_too_few_rows_are_never_drift(rows: int) -> None:
    """However far the values are, fewer than `min_rows` give no verdict."""
    reference = pl.DataFrame({"x": np.arange(1_000.0)})
    current = pl.DataFrame({"x": np.full(rows, 1e9)}, schema={"x": pl.Float64})
    result = drift(reference, current, min_rows=500)
    assert (result.verdict, result.drifted, result.rows) == ("not enough rows", (), rows)


def test_a_column_with_few_values_is_never_drifted() -> None:
    """A column that is nearly all null cannot drift on the few values that it has."""
    reference = pl.DataFrame({"x": np.arange(1_000.0)})
    current = pl.DataFrame({"x": [*[1e9] * 10, *[None] * 990]})
    assert not drift(reference, current).columns[0].drifted


def test_frames_that_cannot_be_compared_are_refused_by_name() -> None:
    """A missing column, a column of another nature, and a type that has no index are named."""
    reference = pl.DataFrame({"x": [1.0], "y": [2.0]})
    with pytest.raises(IncomparableColumnsError, match="lacks y of the reference"):
        drift(reference, reference.select("x"))
    with pytest.raises(IncomparableColumnsError, match="'y' is Float64 in the reference and String"):
        drift(reference, reference.with_columns(y=pl.lit("a")))
    with pytest.raises(IncomparableColumnsError, match=r"'y' is Struct"):
        drift(pl.DataFrame({"y": [{"a": 1}]}), pl.DataFrame({"y": [{"a": 1}]}))
