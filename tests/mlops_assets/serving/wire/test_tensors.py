"""What is written as a tensor is read back as the same column, in JSON and as bytes."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.fields import TypeName
from mlops_assets.serving.wire.columns import Values
from mlops_assets.serving.wire.problems import InvalidRequestError
from mlops_assets.serving.wire.tensors import read_tensors, write_tensor

VALUES: dict[TypeName, st.SearchStrategy[Any]] = {
    "Bool": st.booleans(),
    "Int64": st.integers(-(2**63), 2**63 - 1),
    "Float64": st.floats(allow_nan=False),
    "String": st.text(),
}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("dtype", list(VALUES))
@given(data=st.data())
def test_a_column_comes_back_as_it_was_written(dtype: TypeName, binary: bool, data: st.DataObject) -> None:
    """Missing values too; a column that bytes have no word for goes as JSON."""
    finite = VALUES[dtype] if binary or dtype != "Float64" else st.floats(allow_nan=False, allow_infinity=False)
    values = data.draw(st.lists(st.none() | finite, min_size=1, max_size=9))
    tensor, behind = write_tensor("x", dtype, values, binary=binary)
    assert bool(behind) <= binary
    columns = read_tensors([orjson.loads(orjson.dumps(tensor))], behind)
    assert columns["x"].to_list() == values
    assert columns["x"].dtype == dtype or not any(value is not None for value in values)


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=9))
def test_rows_of_numbers_are_read_row_by_row(rows: list[tuple[float, float]]) -> None:
    """Flat or nested: a tensor's data lies in the order of its shape."""
    for data in ([number for row in rows for number in row], [list(row) for row in rows]):
        shape = [len(rows), 2]
        columns = read_tensors([{"name": "x", "shape": shape, "datatype": "FP64", "data": data}], b"")
        assert str(columns["x"].numbers().tolist()) == str([list(row) for row in rows])


@pytest.mark.parametrize(
    ("datatype", "data", "values"),
    [
        ("UINT64", [2**63 - 1, 0], [2**63 - 1, 0]),
        ("INT8", [-128, 127], [-128, 127]),
        ("FP16", [0.5, None], [0.5, None]),
        ("BOOL", [True, None], [True, None]),
        ("BYTES", ["", None], ["", None]),
    ],
)
def test_every_datatype_is_one_of_ours(datatype: str, data: list[Any], values: list[Any]) -> None:
    """Null is missing in each of them."""
    columns = read_tensors([{"name": "x", "shape": [2], "datatype": datatype, "data": data}], b"")
    assert columns["x"].to_list() == values


@pytest.mark.parametrize("datatype", ["INT8", "UINT8", "UINT64", "INT64"])
def test_a_number_that_its_datatype_cannot_hold_is_refused(datatype: str) -> None:
    """Not wrapped around."""
    for number in (2**64, -(2**63) - 1, 2**63 if datatype != "INT8" else 128):
        with pytest.raises(InvalidRequestError):
            read_tensors([{"name": "x", "shape": [1], "datatype": datatype, "data": [number]}], b"")


def test_rows_that_are_picked_keep_their_values() -> None:
    """Of every kind of column."""
    tensors = [
        {"name": "n", "shape": [3], "datatype": "INT64", "data": [1, None, 3]},
        {"name": "t", "shape": [3], "datatype": "BYTES", "data": ["a", None, "c"]},
        {"name": "f", "shape": [3], "datatype": "FP64", "data": [1.5, None, 3.5]},
        {"name": "a", "shape": [3, 2], "datatype": "FP64", "data": [[1, 2], [None, None], [5, 6]]},
    ]
    picked: dict[str, Values] = {name: values.take([2, 1]) for name, values in read_tensors(tensors, b"").items()}
    assert {name: values.to_list() for name, values in picked.items()} == {
        "n": [3, None], "t": ["c", None], "f": [3.5, None], "a": [[5.0, 6.0], None],
    }  # fmt: skip
