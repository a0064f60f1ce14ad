"""A release reads exactly what it asks for: quickly where that is sure, as strictly as its judge where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.input_schema import Column, InputSchema
from mlops_assets.serving.plan import FeaturePlan, PlannedEntity, RequestField
from mlops_assets.serving.transform import series_of
from mlops_assets.serving.wire.columns import Values
from mlops_assets.serving.wire.form import Form, InvalidRequestError
from mlops_assets.serving.wire.ids import new_ids
from mlops_assets.serving.wire.problems import MAX_PROBLEMS, problems
from mlops_assets.serving.wire.raw import Raw, Rows, Table

NOW = datetime(2013, 4, 1, tzinfo=UTC)
SCHEMA = InputSchema(
    (
        Column("distance", "Float64"),
        Column("seats", "Int64"),
        Column("holiday", "Bool"),
        Column("carrier", "String", ("AA", "UA")),
        Column("embedding", "Float64Array", size=2),
        Column("temp", "Float64"),
    )
)
PLAN = FeaturePlan(
    model="flights/late",
    key="flight_id",
    entities=(PlannedEntity("origin", "String"), PlannedEntity("gate", "Int64")),
    request=(
        RequestField("distance", "Float64", minimum=0, maximum=6000),
        RequestField("seats", "Int64", minimum=1),
        RequestField("holiday", "Bool"),
        RequestField("carrier", "String"),
        RequestField("scheduled", "UnixTimestamp"),
    ),
    views=(),
    inputs=SCHEMA.names,
)
FORM = Form.of(PLAN, SCHEMA)
FEATURES: dict[str, Any] = {
    "distance": 200.0, "seats": 150, "holiday": False, "carrier": "UA", "embedding": [0.5, 1], "temp": 50.0,
}  # fmt: skip
ROW: dict[str, Any] = {
    "origin": "EWR", "gate": 4, "distance": 200.0, "seats": 150, "holiday": False, "carrier": "UA",
    "scheduled": "2013-04-01T08:00:00+00:00",
}  # fmt: skip

NUMBERS = [0, -1, 1.5, 2**63, -(2**63), 2**63 - 1, 1e39, float("inf"), float("nan"), 3.4e38, -3.5e38]
ARRAYS: list[Any] = [[], [1.0], [1.0, 2.0], [1.0, None], [True, 1.0], [1.0, float("inf")]]
odd = st.sampled_from([None, True, False, *NUMBERS, "", "UA", "2", "2013-04-01", *ARRAYS, {}, {"a": 1}])


@st.composite
def rows(draw: st.DrawFn, full: bool) -> list[dict[str, Any]]:
    """Rows that are valid but for a few values that may be anything, a few left out, a few too many."""
    made = []
    for _ in range(draw(st.sampled_from([1, 2, 12]))):
        values = dict(FEATURES if full else ROW)
        for name in draw(st.lists(st.sampled_from([*values, "speed"]), max_size=2)):
            values[name] = draw(odd)
        for name in draw(st.lists(st.sampled_from(list(values)), max_size=1 if draw(st.booleans()) else 0)):
            values.pop(name)
        row = {"features": values} if full else values
        for name in draw(st.lists(st.sampled_from(["flight_id", "origin", "gate"]), max_size=2)):
            row[name] = draw(odd | st.sampled_from(["EWR", 7]))
        made.append(row)
    return made


def refused(raw: Raw, places: list[int] | None = None) -> list[tuple[int | None, str | None, str]]:
    """What is said about a request that is not answered; nothing where it is."""
    try:
        FORM.read(raw, places)
    except InvalidRequestError as error:
        return [(one.row, one.field, one.problem) for one in error.problems]
    return []


@given(rows(full=True) | rows(full=False))
def test_the_quick_way_refuses_exactly_what_the_judge_refuses(some: list[dict[str, Any]]) -> None:
    """Whatever the values, a request is read when, and only when, no row of it has a problem."""
    found = [(n, one.field, one.problem) for n, row in enumerate(some) for one in problems(row, PLAN, SCHEMA)]
    assert refused(Rows(some, NOW)) == found[:MAX_PROBLEMS]


@pytest.mark.parametrize("size", [1, 5, 50])
def test_rows_of_features_are_read_in_the_order_of_the_plan(size: int) -> None:
    """However the caller orders them; keys and ids where they are given."""
    shuffled = {"features": dict(sorted(FEATURES.items()))}
    plain = FORM.read(Rows([shuffled] * size, NOW))
    assert plain.given is not None and plain.given.rows() == [tuple(FEATURES.values())] * size
    assert (plain.keys, plain.asked, plain.at, len({*plain.ids})) == ({}, None, NOW, size)
    named = FORM.read(Rows([{**shuffled, "flight_id": 7, "gate": 3}, *[shuffled] * (size - 1)], NOW))
    assert named.ids[0] == "7" and named.keys == {"gate": [3, *[None] * (size - 1)]}


@pytest.mark.parametrize("size", [1, 5, 50])
def test_rows_by_keys_are_asked_as_they_came(size: int) -> None:
    """Look-up gets the rows themselves, the log the keys."""
    some = [{**ROW, "gate": n, "flight_id": f"UA{n}"} for n in range(size)]
    question = FORM.read(Rows(some, NOW))
    assert question.asked == some and question.given is None and question.size == size
    assert question.ids == [f"UA{n}" for n in range(size)]
    assert {key: list(column) for key, column in question.keys.items()} == {
        "origin": ["EWR"] * size,
        "gate": list(range(size)),
    }


def test_a_part_of_the_rows_is_read_for_its_variant_and_refused_by_its_numbers_in_the_request() -> None:
    """The third and fifth rows are this variant's; what is wrong with the fifth is said of row 4."""
    some = [{**ROW, "flight_id": str(n)} for n in range(6)]
    assert FORM.read(Rows(some, NOW), [2, 4]).ids == ["2", "4"]
    some[4]["seats"] = 0
    assert refused(Rows(some, NOW), [2, 4]) == [(4, "seats", "0 is out of bounds")]


@pytest.mark.parametrize("places", [None, [0, 1]])
def test_rows_by_keys_and_rows_with_features_are_two_requests(places: list[int] | None) -> None:
    """Also where the rows of this variant happen to be of one kind: an answer may not depend on the split."""
    some = [ROW, ROW, {"features": FEATURES}]
    assert refused(Rows(some, NOW), places) == [(2, "features", "brings features, row 0 does not")]
    assert refused(Rows(some[::-1], NOW), places) == [(1, "features", "brings no features, row 0 does")]


@pytest.mark.parametrize(("dtype", "value"), [("Float64", 3.4e38), ("Int64", -(2**63)), ("Int64", 2**63 - 1)])
def test_the_largest_numbers_of_a_type_are_valid(dtype: Any, value: float) -> None:
    """The quick proof cannot tell; the judge can."""
    schema = InputSchema((Column("x", dtype),))
    form = Form.of(replace(PLAN, inputs=("x",), request=(), entities=()), schema)
    question = form.read(Rows([{"features": {"x": value}}], NOW))
    assert question.given is not None and question.given.rows() == [(value,)]


def test_a_model_that_asks_nothing_of_its_caller_is_asked_with_empty_rows() -> None:
    """Neither entities nor request features: the row may hold its id, and nothing else."""
    form = Form.of(replace(PLAN, request=(), entities=()), SCHEMA)
    assert form.read(Rows([{}, {"flight_id": "a"}], NOW)).ids[1] == "a"
    with pytest.raises(InvalidRequestError):
        form.read(Rows([{"distance": 1.0}], NOW))


def test_ids_are_distinct_over_processes() -> None:
    """Also those of a process that forked after making some."""
    made = [*new_ids(500), *(new_ids(1)[0] for _ in range(500))]
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, new_ids(1)[0].encode())
        os._exit(0)
    os.waitpid(child, 0)
    code = "from mlops_assets.serving.wire.ids import new_ids; print(new_ids(1)[0])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    made += [os.read(read, 100).decode(), other, *new_ids(1)]
    assert len({*made}) == 1003 and {len(one) for one in made} <= {17, 18, 19, 20}


# --- tables ---


def table(**columns: Values) -> Table:
    return Table(columns, NOW)


def of(dtype: Any, values: list[Any]) -> Values:
    """A column of Python values."""
    import numpy as np

    if dtype in ("String", "UnixTimestamp"):
        return Values(dtype, values)
    missing = np.array([value is None for value in values])
    if dtype == "Float64Array":
        width = max(len(value) for value in values if value is not None)
        block = [[np.nan] * width if value is None else value for value in values]
        return Values(dtype, np.array(block, float), missing)
    if dtype == "Float64":
        return Values(dtype, np.array([np.nan if value is None else value for value in values], float))
    filled = [0 if value is None else value for value in values]
    return Values(dtype, np.array(filled, np.int64 if dtype == "Int64" else np.bool_), missing)


def full_table(some: list[dict[str, Any]]) -> dict[str, Values]:
    return {c.name: of(c.dtype, [row[c.name] for row in some]) for c in SCHEMA.columns}


def keyed_table(some: list[dict[str, Any]]) -> dict[str, Values]:
    return {cell.name: of(cell.dtype, [row[cell.name] for row in some]) for cell in FORM.asked.cells}


nullable = st.fixed_dictionaries(
    {
        "distance": st.none() | st.floats(-1e30, 1e30),
        "seats": st.none() | st.integers(-(2**63), 2**63 - 1),
        "holiday": st.none() | st.booleans(),
        "carrier": st.none() | st.sampled_from(["AA", "UA", "??", ""]),
        "embedding": st.none() | st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2),
        "temp": st.none() | st.floats(-1e30, 1e30),
    }
)


@given(st.lists(nullable, min_size=1, max_size=12).filter(lambda some: any(row["embedding"] for row in some)))
def test_a_table_gives_the_model_the_very_numbers_that_rows_give(some: list[dict[str, Any]]) -> None:
    """The same float32, bit for bit, and the same Python values for the log."""
    by_rows = FORM.read(Rows([{"features": row} for row in some], NOW)).given
    by_table = FORM.read(table(**full_table(some))).given
    assert by_rows is not None and by_table is not None
    assert by_table.matrix(SCHEMA).tobytes() == by_rows.matrix(SCHEMA).tobytes()
    assert list(by_table.rows()) == [tuple(row[name] for name in PLAN.inputs) for row in some]
    assert list(by_table.take([len(some) - 1]).rows()) == [tuple(some[-1][name] for name in PLAN.inputs)]


def test_a_table_of_keys_asks_what_rows_of_keys_ask() -> None:
    """Its rows are looked up; the log gets their keys, the caller its ids."""
    some = [{**ROW, "gate": n} for n in range(3)]
    question = FORM.read(table(**keyed_table(some), flight_id=of("Int64", [7, 8, 9])))
    assert question.asked == some and question.ids == ["7", "8", "9"]
    assert question.keys == {"origin": ["EWR"] * 3, "gate": [0, 1, 2]}
    assert FORM.read(table(**keyed_table(some)), [2]).asked == [some[2]]


def test_the_keys_beside_a_table_of_inputs_are_kept() -> None:
    """For the log and for explaining; they are judged too."""
    columns = full_table([FEATURES] * 2)
    assert FORM.read(table(**columns, origin=of("String", ["EWR", "JFK"]))).keys == {"origin": ["EWR", "JFK"]}
    assert refused(table(**columns, origin=of("String", ["EWR", None]))) == [(1, "origin", "null")]


WRONG: list[tuple[str, str, list[Any], tuple[int | None, str]]] = [
    ("distance", "String", ["a", "b", "c"], (None, "a column of String is not a finite number")),
    ("distance", "Float64", [1.0, 1e39, 2.0], (1, "1e+39 is not a finite number")),
    ("distance", "Float64", [1.0, 2.0, float("inf")], (2, "inf is not a finite number")),
    ("distance", "Float64", [1.0, 6000.5, 2.0], (1, "6000.5 is out of bounds")),
    ("seats", "Float64", [1.0, 2.0, 3.0], (None, "a column of Float64 is not a whole number")),
    ("seats", "Int64", [1, None, 0], (2, "0 is out of bounds")),
    ("holiday", "Int64", [0, 1, 0], (None, "a column of Int64 is not true or false")),
    ("gate", "Int64", [1, None, 3], (1, "null")),
    ("gate", "Float64", [None, None, None], (0, "null")),
    ("scheduled", "String", ["2013-04-01", "noon", None], (1, "'noon' is not a time as ISO-8601 text")),
]


@pytest.mark.parametrize(("name", "dtype", "values", "said"), WRONG)
def test_a_wrong_column_is_named_and_a_wrong_value_by_its_row(name: str, dtype: str, values: Any, said: Any) -> None:
    """As rows are; a column of another type has no row."""
    row, problem = said
    assert refused(table(**{**keyed_table([ROW] * 3), name: of(dtype, values)}))[0] == (row, name, problem)


@pytest.mark.parametrize(("dtype", "values"), [("Float64", [None] * 3), ("Int64", [1, 2, 3])])
def test_whole_numbers_and_nothing_at_all_are_numbers(dtype: Any, values: list[Any]) -> None:
    """A column of nulls has no type of its own; a whole number is a number."""
    columns = {**full_table([FEATURES] * 3), "distance": of(dtype, values)}
    question = FORM.read(table(**columns))
    assert question.given is not None and [row[0] for row in question.given.rows()] == values
    nothing = {**columns, **{name: of("Float64", [None] * 3) for name in SCHEMA.names}}
    empty = FORM.read(table(**nothing)).given
    assert empty is not None and list(empty.rows()) == [(None,) * 6] * 3


def test_a_table_of_other_columns_is_told_which_are_missing_and_which_unknown() -> None:
    """By the kind that it looks like."""
    full, keyed = full_table([FEATURES]), keyed_table([ROW])
    assert refused(table(**{n: c for n, c in full.items() if n != "seats"})) == [(None, "seats", "missing")]
    assert refused(table(**{n: c for n, c in keyed.items() if n != "seats"})) == [(None, "seats", "missing")]
    assert refused(table(**full, speed=of("Float64", [1.0]))) == [(None, "speed", "unknown field")]
    assert refused(table(**full, flight_id=of("Float64", [1.0]))) == [(None, "flight_id", "not a string")]
    assert refused(table(**{**full, "embedding": of("Float64Array", [[1.0]])})) == [
        (None, "embedding", "an array of 1 numbers")
    ]
    assert refused(table(**{**full, "embedding": of("Float64Array", [[1.0, float("nan")]])})) == [
        (0, "embedding", "[1.0, nan] is not an array of finite numbers")
    ]


MATRIX = InputSchema(
    (
        Column("distance", "Float64"),
        Column("seats", "Int64"),
        Column("holiday", "Bool"),
        Column("embedding", "Float64Array", size=2),
    )
)
OF_NUMBERS = Form.of(replace(PLAN, inputs=MATRIX.names), MATRIX)


def test_a_lone_matrix_is_the_numbers_of_a_model_in_their_order() -> None:
    """Whole numbers, truths and arrays come out as what they are; NaN is missing."""
    nan = float("nan")
    block = [[1.5, 3.0, 1.0, 0.5, 0.25], [nan, nan, nan, nan, nan]]
    question = OF_NUMBERS.read(table(anything=of("Float64Array", block)))
    assert question.given is not None
    assert list(question.given.rows()) == [(1.5, 3, True, [0.5, 0.25]), (None, None, None, None)]
    assert str(question.given.matrix(MATRIX).tolist()) == str(block)


@pytest.mark.parametrize(
    ("form", "row", "problem"),
    [
        (OF_NUMBERS, [1.5, 3.5, 1.0, 0.5, 0.25], "3.5 is not a whole number"),
        (OF_NUMBERS, [1.5, 3.0, 2.0, 0.5, 0.25], "2.0 is not 0 or 1"),
        (OF_NUMBERS, [1.5, 3.0], "rows of 2 numbers"),
        (OF_NUMBERS, [1e39, 3.0, 1.0, 0.5, 0.25], "1e+39 is not a finite number"),
        (FORM, [1.5, 3.0, 1.0, 0.5, 0.25, 1.0], "a matrix of numbers has no text"),
    ],
)
def test_a_matrix_that_no_row_could_be_is_refused(form: Form, row: list[float], problem: str) -> None:
    """As strictly as the same values by name."""
    with pytest.raises(InvalidRequestError) as caught:
        form.read(table(anything=of("Float64Array", [row])))
    assert caught.value.problems[0].problem == problem


@pytest.mark.parametrize(
    "texts",
    [
        ["2013-04-01T12:00:00+00:00", "2013-04-01T12:00:00.5Z", None, "2013-04-01", "20130401"],
        ["2013-04-01T12:00:00", "2013-04-01T14:00:00+02:00"],
    ],
)
def test_every_time_that_may_be_sent_is_read_by_a_transform(texts: list[str | None]) -> None:
    """However each is written: what is found valid never fails later."""
    import polars as pl

    series = series_of("scheduled", texts, pl.Datetime("us", "UTC"))
    assert refused(Rows([{**ROW, "scheduled": text} for text in texts], NOW)) == []
    assert series.null_count() == texts.count(None) and series.dtype == pl.Datetime("us", "UTC")
    assert refused(Rows([{**ROW, "scheduled": "9999-12-31T23:59:59-23:59"}], NOW))[0][1] == "scheduled"


@pytest.mark.parametrize("name", ["distance", "origin", "holiday", "flight_id", "speed"])
def test_a_value_of_any_depth_or_length_is_refused_by_name(name: str) -> None:
    """What says so looks at its beginning alone."""
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, [0.5] * 1_000_000, "x" * 1_000_000 if name != "flight_id" else b"x" * 1_000_000, {"a": deep}):
        if name == "origin" and isinstance(value, str):
            continue
        ((row, field, problem),) = refused(Rows([{**ROW, name: value}], NOW))
        assert (row, field) == (0, name) and len(problem) < 100
