"""Folded expressions: whatever is folded says what Polars says, of any row; what cannot be is left to Polars."""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.fields import Bool, Field, Float64, Float64Array, Int64, String
from mlops_assets.serving.folding import PREDICTION, cell, fold

FIELDS: dict[str, Field] = {
    PREDICTION: Float64,
    "miles": Float64,
    "seats": Int64,
    "carrier": String,
    "holiday": Bool,
    "where": Float64Array("Place", size=2),
}
NAMES = [name for name in FIELDS if name not in (PREDICTION, "where")]
NUMBERS = st.sampled_from([0.0, -1.5, 0.35, 0.1 + 0.2, 7.0, 1e300])
PARTS = {name: pl.col(name) for name in FIELDS}


def floats() -> st.SearchStrategy[pl.Expr]:
    """Expressions of floats: columns, literals and their arithmetic."""
    leaves = st.sampled_from([PARTS[PREDICTION], PARTS["miles"], PARTS["seats"].cast(pl.Float64)]) | NUMBERS.map(pl.lit)
    both = lambda part: st.tuples(part, part, st.sampled_from("+-*/")).map(arithmetic)  # noqa: E731
    return st.recursive(leaves, both, max_leaves=4)


def arithmetic(parts: tuple[pl.Expr, pl.Expr, str]) -> pl.Expr:
    left, right, sign = parts
    return {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]


def compared(parts: tuple[pl.Expr, pl.Expr, str]) -> pl.Expr:
    left, right, sign = parts
    table = {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}
    return {**table, "==": left == right, "!=": left != right, "null": left.is_null(), "not null": left.is_not_null()}[
        sign
    ]


def conditions() -> st.SearchStrategy[pl.Expr]:
    """Expressions of truth: comparisons of numbers and texts, and what joins them."""
    signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "null", "not null"])
    leaves = st.one_of(
        st.tuples(floats(), floats(), signs).map(compared),
        st.tuples(st.just(PARTS["seats"]), st.integers(-2, 60).map(pl.lit), signs).map(compared),
        st.tuples(st.just(PARTS["carrier"]), st.sampled_from(["AA", ""]).map(pl.lit), signs).map(compared),
        st.just(PARTS["holiday"]),
    )
    joined = lambda part: st.one_of(  # noqa: E731
        st.tuples(part, part).map(lambda two: two[0] & two[1]),
        st.tuples(part, part).map(lambda two: two[0] | two[1]),
        part.map(lambda one: ~one),
    )
    return st.recursive(leaves, joined, max_leaves=4)


def outcomes() -> st.SearchStrategy[pl.Expr]:
    """Conditions, numbers, and texts or numbers chosen by conditions."""
    texts = st.tuples(conditions(), conditions()).map(
        lambda two: pl.when(two[0]).then(pl.lit("a")).when(two[1]).then(pl.lit(None)).otherwise(pl.col("carrier"))
    )
    numbers = st.tuples(conditions(), floats()).map(lambda two: pl.when(two[0]).then(two[1]).otherwise(pl.lit(1)))
    return st.one_of(conditions(), floats(), texts, numbers)


CELLS = {
    PREDICTION: st.floats(0, 1) | NUMBERS,
    "miles": st.none() | NUMBERS | st.sampled_from([nan, inf, 3]),
    "seats": st.none() | st.integers(-3, 100),
    "carrier": st.none() | st.sampled_from(["AA", "", "UA"]),
    "holiday": st.none() | st.booleans(),
}


@given(outcomes(), st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=5))
def test_what_is_folded_says_what_polars_says(expression: pl.Expr, rows: list[dict[str, Any]]) -> None:
    """Null, NaN, infinity, whole numbers for floats, division by zero: value for value, through JSON.

    Of many rows: a row alone Polars may divide in another way, in the last bit.
    """
    rows = [*rows, *rows]
    folded = fold(expression, FIELDS)
    if folded is None:
        return
    make = cell(json.loads(json.dumps(folded)), {name: place for place, name in enumerate(NAMES)})
    mine = [make([row[name] for name in NAMES], row[PREDICTION]) for row in rows]
    frame = pl.DataFrame([pl.Series(name, [row[name] for row in rows], FIELDS[name].polars) for name in CELLS])
    polars = frame.select(made=expression)["made"]
    polars = polars if polars.len() == len(rows) else polars.extend_constant(polars[0], len(rows) - 1)
    assert polars.equals(pl.Series("made", mine, polars.dtype, strict=False), null_equal=True), folded


@pytest.mark.parametrize(
    "expression",
    [
        pl.col(PREDICTION) >= 0.5,
        (pl.col(PREDICTION) > 0.5) & (pl.col("miles") > 300) & ~pl.col("holiday"),
        pl.when(pl.col(PREDICTION) < 0.2).then(pl.lit("low")).otherwise(pl.lit("high")).cast(pl.String).alias("risk"),
        (pl.col(PREDICTION) / 60).cast(pl.Float64),
        pl.when(pl.col("seats") > 2.5).then(1).otherwise(0).cast(pl.Int64),
    ],
)
def test_the_usual_is_folded(expression: pl.Expr) -> None:
    """Thresholds, bands, another unit."""
    assert fold(expression, FIELDS)


@pytest.mark.parametrize(
    "expression",
    [
        pl.col(PREDICTION).round(2),
        pl.col("carrier").str.to_lowercase(),
        pl.col(PREDICTION).log(),
        pl.col("where").list.get(0) > 1,
        pl.col("seats") + pl.col("seats"),  # whole numbers overflow in Polars and not in Python
        pl.col("seats").cast(pl.String),
    ],
)
def test_the_rest_is_left_to_polars(expression: pl.Expr) -> None:
    """Functions, texts, arrays, and whole numbers, which Polars bounds."""
    assert fold(expression, FIELDS) is None


@pytest.mark.parametrize("words", [["open", ["value", "x"]], ["column", "nothing"], ["value", []], ["+"], []])
def test_words_that_mean_nothing_are_refused(words: list[Any]) -> None:
    """A folded expression is data of five shapes; anything else is an error when it is read, not when it answers."""
    with pytest.raises((KeyError, ValueError)):
        cell(words, {"miles": 0})
