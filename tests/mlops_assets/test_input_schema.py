"""Serving and training see the very same numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.fields import Bool, Float64, Float64Array, Int64, String, UnixTimestamp
from mlops_assets.input_schema import InputError, InputSchema

FIELDS = {"carrier": String("Airline"), "temp": Float64("Air", unit="degF", minimum=-60), "seats": Int64, "night": Bool}
DTYPES = {name: field.polars for name, field in FIELDS.items()}
SEEN = pl.DataFrame(
    {"carrier": ["UA", "AA", None, "UA"], "temp": [1.5, None, 3.0, 4.0], "seats": [1, 2, 3, None], "night": [True] * 4},
    schema=DTYPES,
)
SCHEMA = InputSchema.fit(SEEN, FIELDS)
rows = st.lists(
    st.tuples(
        st.none() | st.sampled_from(["UA", "AA", "never seen"]) | st.text(max_size=3),
        st.none() | st.floats(allow_infinity=False, width=32) | st.floats(-1e300, 1e300),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.booleans(),
    ),
    max_size=20,  # beyond a few rows they are read column by column
)


def encoded(encode, rows_or_frame):
    """The matrix, or the error's words: refusing is part of the contract."""
    try:
        return encode(rows_or_frame)
    except InputError as error:
        return np.frombuffer(str(error).encode(), dtype=np.uint8)


@given(rows)
def test_encoding_rows_equals_encoding_their_frame(values) -> None:
    """The serving path and the training path give the same float32, bit for bit, or the same refusal."""
    frame = pl.DataFrame(values, schema=DTYPES, orient="row")
    one, other = encoded(SCHEMA.encode, values), encoded(SCHEMA.encode_frame, frame)
    assert one.dtype == other.dtype and one.shape == other.shape
    np.testing.assert_array_equal(one, other)


def test_values_are_encoded_as_promised() -> None:
    """Null and NaN and unseen categories become NaN, a category its index, a Boolean 0 or 1."""
    matrix = SCHEMA.encode([["UA", 1.25, 7, True], ["AA", None, None, False], ["??", math.nan, 0, None]])
    nan = math.nan
    np.testing.assert_array_equal(matrix, np.array([[1, 1.25, 7, 1], [0, nan, nan, 0], [nan, nan, 0, nan]], "f4"))


def test_the_vocabulary_comes_from_the_rows_it_was_fitted_on() -> None:
    """Sorted, without nulls: the order in which rows arrive never changes a code."""
    assert SCHEMA.columns[0].categories == ("AA", "UA")
    assert InputSchema.fit(SEEN.reverse(), FIELDS) == SCHEMA


def test_a_schema_survives_json() -> None:
    """What the bundle holds is the whole schema, with meanings and bounds."""
    assert InputSchema.from_json(json.loads(json.dumps(SCHEMA.to_json()))) == SCHEMA
    assert SCHEMA.columns[1].unit == "degF" and SCHEMA.columns[1].minimum == -60


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e300])
def test_infinity_is_refused_by_name(value: float) -> None:
    """An infinite value, or one that float32 makes infinite, names its column."""
    with pytest.raises(InputError, match=r"'temp'.*infinite"):
        SCHEMA.encode([["UA", value, 1, True]])
    with pytest.raises(InputError, match=r"'temp'.*infinite"):
        SCHEMA.encode_frame(SEEN.with_columns(temp=pl.lit(value)))


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("value", [1.0009765625, -1.0009765625, 65407.0, 3.4028234663852886e38])
def test_what_only_looks_infinite_is_a_number(value: float, rows: int) -> None:
    """Numbers whose bytes hold those that an infinite one ends on, and the largest float32 itself."""
    assert SCHEMA.encode([["UA", value, 1, True]] * rows)[:, 1].tolist() == [np.float32(value)] * rows


def test_the_matrix_may_be_written_to() -> None:
    """Some libraries take no other."""
    assert (
        SCHEMA.encode([["UA", 1.0, 1, True]]).flags.writeable
        and SCHEMA.encode([["UA", 1, 1, True]] * 20).flags.c_contiguous
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (["UA", "2", 1, True], "'temp'.*'2'"),
        (["UA", 1.0, [1], True], r"'seats'.*\[1\]"),
        ([["UA"], 1.0, 1, True], "'carrier'.*UA"),
        (["UA", 1.0], "a row has 2 values"),
        (["UA", 1.0, 1, True, 5], "a row has 5 values"),
        ([], "a row has 0 values"),
        (["UA", 1.0, 10**400, True], "too large"),
    ],
)
def test_a_misfit_row_is_named(row, words: str) -> None:
    """A row of another length or type says which column and which value, even beside good rows."""
    for beside in (1, 20):
        with pytest.raises(InputError, match=words):
            SCHEMA.encode([*[["UA", 1.0, 1, True]] * beside, row])


def test_a_misfit_frame_is_named() -> None:
    """A missing column and a changed type say which column and what was given."""
    with pytest.raises(InputError, match=r"'seats': is missing.*carrier"):
        SCHEMA.encode_frame(SEEN.drop("seats"))
    with pytest.raises(InputError, match="'seats': has type String"):
        SCHEMA.encode_frame(SEEN.with_columns(seats=pl.lit("3")))
    with pytest.raises(InputError, match="'at': is a UnixTimestamp"):
        InputSchema.fit(SEEN, {"at": UnixTimestamp})


def test_an_empty_column_is_all_missing() -> None:
    """A column of nulls without a type (a feature nobody had yet) is read as missing, whatever its field."""
    frame = SEEN.with_columns(pl.lit(None).alias(name) for name in FIELDS)
    assert np.isnan(InputSchema.fit(frame, FIELDS).encode_frame(frame)).all()
    assert SCHEMA.encode([]).shape == SCHEMA.encode_frame(SEEN.clear()).shape == (0, 4)


ARRAYS = {
    "temp": Float64,
    "embedding": Float64Array("Where it flies", size=3),
    "carrier": String,
    "last": Float64Array("", size=1),
}
number = st.none() | st.floats(allow_infinity=False, width=32)


@given(
    st.lists(
        st.tuples(
            number,
            st.none() | st.lists(number, min_size=3, max_size=3),
            st.none() | st.sampled_from(["AA", "UA"]),
            st.none() | st.lists(number, min_size=1, max_size=1),
        ),
        max_size=6,
    )
)
def test_an_array_is_as_many_numbers_as_it_is_long(values) -> None:
    """Each place has a column of its own, null where the array is; rows and frames give the same."""
    frame = pl.DataFrame(values, schema={name: field.polars for name, field in ARRAYS.items()}, orient="row")
    schema = InputSchema.fit(frame, ARRAYS)
    assert schema.numbers == ("temp", "embedding[0]", "embedding[1]", "embedding[2]", "carrier", "last[0]")
    assert InputSchema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    one, other = schema.encode(values), schema.encode_frame(frame)
    assert one.shape == (len(values), 6)
    np.testing.assert_array_equal(one, other)
    for row, value in zip(one, values, strict=True):
        np.testing.assert_array_equal(row[1:4], np.array(value[1] or [None] * 3, "f4"))


@pytest.mark.parametrize("array", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0], 1.0, "abc", [1.0, "2", 3.0], [[1.0], 2.0, 3.0]])
def test_an_array_of_another_length_or_of_no_numbers_is_named(array) -> None:
    schema = InputSchema.fit(pl.DataFrame(schema={name: field.polars for name, field in ARRAYS.items()}), ARRAYS)
    with pytest.raises(InputError, match="'embedding'"):
        schema.encode([[1.0, array, "AA", [1.0]]])
