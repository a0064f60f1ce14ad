"""Bytes made from columns are those that Feast makes of each value; packed rows are the same by column and by row."""

from __future__ import annotations

import struct
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resources.online import feast_wire
from resources.online.packed_columns import layout_of, pack
from resources.online.packed_row import NEVER, moment
from resources.online.rows import _column_texts

floats = st.floats(allow_nan=False)
single = st.floats(allow_nan=False, width=32)
int32, int64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
moments = st.integers(-(10**15), 10**16).map(moment)
SCALARS: dict[str, tuple[Any, st.SearchStrategy[Any], Any]] = {
    "BYTES": (pl.Binary(), st.binary(max_size=200), b"x"),
    "STRING": (pl.String(), st.text(max_size=200), "x"),
    "INT32": (pl.Int32(), int32, 7),
    "INT64": (pl.Int64(), int64, 7),
    "DOUBLE": (pl.Float64(), floats, 7.5),
    "FLOAT": (pl.Float32(), single, 7.5),
    "BOOL": (pl.Boolean(), st.booleans(), True),
    "UNIX_TIMESTAMP": (pl.Datetime("us", "UTC"), moments.map(lambda at: at.replace(microsecond=0)), moment(0)),
}
KINDS = {
    **SCALARS,
    **{
        f"{kind}_LIST": (pl.List(dtype), st.lists(value, max_size=4), [witness])
        for kind, (dtype, value, witness) in SCALARS.items()
    },
}


def by_feast(values: list[Any], kind: str) -> list[bytes]:
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    return [proto.SerializeToString() for proto in python_values_to_proto_values(values, getattr(ValueType, kind))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_column_becomes_the_bytes_that_feast_makes(kind: str, data: st.DataObject) -> None:
    """For every type that has an encoder, with nulls, empty and full lists, and numbers of any size."""
    dtype, value, witness = KINDS[kind]
    # Feast takes a batch of nothing but empty values for nulls: one that is not empty tells it the type.
    values = [witness, *data.draw(st.lists(st.none() | value, max_size=6))]
    assert feast_wire.values(pl.Series(values, dtype=dtype), kind) == by_feast(values, kind)


def test_a_type_without_an_encoder_goes_through_feast() -> None:
    values = [{"a": 1.5}, None]
    assert feast_wire.values(pl.Series(values, dtype=pl.Struct({"a": pl.Float64})), "MAP") == by_feast(values, "MAP")


def test_an_array_of_fixed_size_is_a_list() -> None:
    column = pl.Series([[0.5, 1.5], None], dtype=pl.Array(pl.Float64, 2))
    assert feast_wire.values(column, "DOUBLE_LIST") == by_feast([[0.5, 1.5], None], "DOUBLE_LIST")


@settings(max_examples=60)
@given(at=st.lists(st.integers(-(10**15), 10**16), max_size=6))
def test_event_times_become_feasts_timestamps(at: list[int]) -> None:
    from google.protobuf.timestamp_pb2 import Timestamp

    def by_protobuf(us: int) -> bytes:
        time = Timestamp()
        time.FromDatetime(moment(us))
        return time.SerializeToString()

    assert feast_wire.timestamps(np.array(at, dtype=np.int64)) == [by_protobuf(us) for us in at]


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(st.text(max_size=9), int64, int32, moments, st.binary(max_size=9)), max_size=5))
def test_entity_keys_are_feasts(rows: list[tuple[Any, ...]]) -> None:
    """Of several join keys, in whatever order the view has them."""
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    names, kinds = ("zeta", "b", "c", "alpha", "é"), ("STRING", "INT64", "INT32", "UNIX_TIMESTAMP", "BYTES")
    rows = [(*row[:3], row[3].replace(microsecond=0), row[4]) for row in rows]
    fields = [f"{kind.lower()}_val" for kind in kinds]
    said = [[int(cell.timestamp()) if isinstance(cell, datetime) else cell for cell in row] for row in rows]
    expected = [
        serialize_entity_key(
            EntityKey(
                join_keys=names,
                entity_values=[Value(**{field: cell}) for field, cell in zip(fields, row, strict=True)],
            ),
            entity_key_serialization_version=3,
        )
        for row in said
    ]
    columns = {
        name: (pl.Series([row[at] for row in rows], dtype=SCALARS[kind][0]), kind)
        for at, (name, kind) in enumerate(zip(names, kinds, strict=True))
    }
    assert feast_wire.entity_keys(columns) == expected


@settings(max_examples=200)
@given(values=st.lists(st.none() | st.floats() | st.integers(-9, 9).map(float), max_size=9), power=st.integers(-30, 30))
@example(values=[1e-4, 9.999999999999999e-05, 1e16, 9999999999999998.0, -1e16, -0.0, 5e-324], power=0)
def test_floats_are_shown_as_python_shows_them(values: list[float | None], power: int) -> None:
    """As Feast's SQLite store writes them beside the bytes, with exponents and without."""
    scaled = [value if value is None else value * 10.0**power for value in values]
    expected = [None if value is None else str(value) for value in scaled]
    assert _column_texts(pl.Series(scaled, dtype=pl.Float64), "DOUBLE") == expected


PACKED = {kind: KINDS[kind] for kind in ("BOOL", "INT64", "DOUBLE", "STRING", "UNIX_TIMESTAMP", "STRING_LIST")}


@settings(max_examples=60)
@given(data=st.data())
def test_a_frame_packs_into_the_rows_that_each_would_be(data: st.DataObject) -> None:
    """Byte for byte, and read back as they were."""
    finite = {**PACKED, "DOUBLE_LIST": (pl.List(pl.Float64()), st.lists(st.floats(-1e9, 1e9), max_size=3), None)}
    columns = {kind: (dtype, st.none() | value) for kind, (dtype, value, _) in finite.items()}
    rows = data.draw(st.lists(st.tuples(*(value for _, value in columns.values())), max_size=5))
    frame = pl.DataFrame(rows, schema={kind: dtype for kind, (dtype, _) in columns.items()}, orient="row")
    layout, times = layout_of({kind: kind for kind in columns}), np.arange(len(rows)) - 2
    packed = pack(layout, frame.get_columns(), times, np.full(len(rows), NEVER))
    assert packed == [layout.encode(at - 2, NEVER, row) for at, row in enumerate(rows)]
    reading = layout.reading(layout.names, time=moment)
    assert [reading.read(row) for row in packed] == [(at - 2, row) for at, row in enumerate(rows)]


def test_a_value_that_is_not_of_its_type_is_refused() -> None:
    with pytest.raises(struct.error):
        layout_of({"temp": "DOUBLE"}).encode(0, NEVER, ["warm"])
