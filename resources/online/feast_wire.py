"""Feast's online wire format made from columns: a serialised `Value` per feature, an entity key per row.

What Feast makes by filling a protobuf object per value, here the bytes are laid out for a whole column at once. The
rule that must never break: they are the bytes that Feast itself would have written, for every type; a type that has
no column encoder goes through Feast's own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl

    Numbers = np.ndarray[Any, np.dtype[Any]]

# Field numbers of feast.types.Value; a list's elements are field 1 of the message within.
FIELDS = {
    "BYTES": 1, "STRING": 2, "INT32": 3, "INT64": 4, "DOUBLE": 5, "FLOAT": 6, "BOOL": 7, "UNIX_TIMESTAMP": 8,
    "BYTES_LIST": 11, "STRING_LIST": 12, "INT32_LIST": 13, "INT64_LIST": 14, "DOUBLE_LIST": 15, "FLOAT_LIST": 16,
    "BOOL_LIST": 17, "UNIX_TIMESTAMP_LIST": 18,
}  # fmt: skip
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # protobuf's wire types
ELEMENTS = b"\x0a"
NULL = b""


def values(column: pl.Series, kind: str) -> list[bytes]:
    """Each value of the column as a serialised `Value` of Feast's type `kind` (`DOUBLE`, `INT64_LIST`, ...)."""
    plain = kind.removesuffix("_LIST")
    if kind not in FIELDS or plain not in ELEMENT:
        return through_feast(column, kind)
    if plain == kind:
        return _scalars(column, kind)
    column = column.arr.to_list() if _is_array(column) else column
    return through_feast(column, kind) if column.explode().null_count() > _empty(column) else _lists(column, kind)


def through_feast(column: pl.Series, kind: str) -> list[bytes]:
    """By way of Feast's own conversion, value by value."""
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    return [
        value.SerializeToString() for value in python_values_to_proto_values(column.to_list(), getattr(ValueType, kind))
    ]


def entity_keys(keys: Mapping[str, tuple[pl.Series, str]]) -> list[bytes]:
    """Each row's entity key in Feast's serialisation 3, of the columns and value types by join key."""
    names = sorted(keys)
    # A join key's name comes with the number of Feast's string type, whatever the key's own type is.
    said = [struct.pack("<II", FIELDS["STRING"], len(name.encode())) + name.encode() for name in names]
    head = struct.pack("<I", len(names)) + b"".join(said)
    if not names:
        return []
    parts = [_key_parts(*keys[name]) for name in names]
    return [head + b"".join(row) for row in zip(*parts, strict=True)]


def timestamps(microseconds: Numbers) -> list[bytes]:
    """Each time as a serialised google.protobuf.Timestamp, as Redis holds a row's event time."""
    seconds, rest = np.divmod(microseconds, 1_000_000)
    parts = _varints(seconds, tag(1, VARINT), zero=NULL)
    if not rest.any():
        return parts
    nanos = _varints(rest * 1_000, tag(2, VARINT), zero=NULL)
    return [whole + part for whole, part in zip(parts, nanos, strict=True)]


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def varint(number: int) -> bytes:
    """A non-negative number in groups of seven bits, the low ones first."""
    if number < len(SMALL):
        return SMALL[number]
    return bytes((number & 0x7F | 0x80,)) + varint(number >> 7)


SMALL = [bytes((number,)) for number in range(128)]


def _key_parts(column: pl.Series, kind: str) -> list[bytes]:
    number = FIELDS[kind]
    if kind in ("STRING", "BYTES"):
        texts = _bytes(column)
        return [struct.pack("<II", number, len(text)) + text for text in texts]
    kind_of = "<i4" if kind == "INT32" else "<i8"
    cells = np.zeros(len(column), dtype=[("number", "<u4"), ("size", "<u4"), ("value", kind_of)])
    cells["number"], cells["size"], cells["value"] = number, int(kind_of[-1]), _integers(column)
    return _split(cells)


def _scalars(column: pl.Series, kind: str) -> list[bytes]:
    wire_type, encode = ELEMENT[kind]
    whole = column.drop_nulls() if column.null_count() else column
    encoded = encode(whole, tag(FIELDS[kind], wire_type))
    return encoded if len(whole) == len(column) else _with_nulls(encoded, column.is_not_null().to_list())


def _with_nulls(encoded: list[bytes], present: Sequence[bool]) -> list[bytes]:
    given = iter(encoded)
    return [next(given) if here else NULL for here in present]


def _lists(column: pl.Series, kind: str) -> list[bytes]:
    """A message of repeated field 1: texts each with its tag, numbers packed behind one."""
    plain, head = kind.removesuffix("_LIST"), tag(FIELDS[kind], LENGTH)
    wire_type, encode = ELEMENT[plain]
    whole = column.drop_nulls()
    elements = whole.filter(whole.list.len() > 0).explode() if len(whole) else whole.explode()
    parts = encode(elements, ELEMENTS if wire_type == LENGTH else b"") if len(elements) else []
    ends = np.cumsum(whole.list.len().to_numpy()).tolist()
    joined = [b"".join(parts[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    packed = joined if wire_type == LENGTH else [part and ELEMENTS + varint(len(part)) + part for part in joined]
    encoded = [head + varint(len(part)) + part for part in packed]
    return _with_nulls(encoded, column.is_not_null().to_list())


def _empty(column: pl.Series) -> int:
    """How many nulls an explode gives for lists that are null or hold nothing."""
    return int((column.list.len().fill_null(0) == 0).sum())


def _is_array(column: pl.Series) -> bool:
    import polars as pl

    return isinstance(column.dtype, pl.Array)


def _bytes(column: pl.Series) -> list[bytes]:
    import polars as pl

    if column.dtype == pl.Binary:
        return column.to_list()
    return [text.encode() for text in column.cast(pl.String).to_list()]


def _integers(column: pl.Series) -> Numbers:
    """Integers as they are, times as whole seconds since 1970."""
    import polars as pl

    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if column.dtype == pl.Datetime:
        return column.dt.epoch("us").to_numpy() // 1_000_000
    return column.cast(pl.Int64).to_numpy()


def _split(cells: Numbers) -> list[bytes]:
    """The bytes of each record of an array."""
    return np.ascontiguousarray(cells).view(f"V{cells.dtype.itemsize}").ravel().tolist()


def _fixed(dtype: str) -> Callable[[pl.Series, bytes], list[bytes]]:
    def encode(column: pl.Series, head: bytes) -> list[bytes]:
        cells = np.zeros(
            len(column), dtype=[("tag", f"V{len(head)}"), ("value", dtype)] if head else [("value", dtype)]
        )
        if head:
            cells["tag"] = np.void(head)
        cells["value"] = column.to_numpy()
        return _split(cells)

    return encode


def _whole(column: pl.Series, head: bytes) -> list[bytes]:
    return _varints(_integers(column), head)


def _texts(column: pl.Series, head: bytes) -> list[bytes]:
    return [head + varint(len(text)) + text for text in _bytes(column)]


def _truths(column: pl.Series, head: bytes) -> list[bytes]:
    words = (head + b"\x00", head + b"\x01")
    return [words[value] for value in column.to_list()]


def _varints(numbers: Numbers, head: bytes, zero: bytes | None = None) -> list[bytes]:
    """Each number behind `head`; those of one length are laid out together. Negative ones take ten bytes."""
    unsigned = numbers.astype(np.int64).view(np.uint64)
    sizes = 1 + sum((unsigned >= np.uint64(1 << 7 * group)).astype(np.int8) for group in range(1, 10))
    encoded = np.empty(len(numbers), dtype=object)
    for size in np.unique(sizes).tolist():
        at = np.flatnonzero(sizes == size)
        encoded[at] = _split_list(_varints_of(unsigned[at], size, head))
    if zero is not None:
        encoded[np.flatnonzero(unsigned == 0)] = zero
    return encoded.tolist()


def _varints_of(unsigned: Numbers, size: int, head: bytes) -> Numbers:
    groups = (unsigned[:, None] >> (np.arange(size, dtype=np.uint64) * np.uint64(7))) & np.uint64(0x7F)
    groups[:, :-1] |= np.uint64(0x80)
    heads = np.broadcast_to(np.frombuffer(head, dtype=np.uint8), (len(unsigned), len(head)))
    return np.ascontiguousarray(np.hstack([heads, groups.astype(np.uint8)]))


def _split_list(rows: Numbers) -> Numbers:
    """The rows of a matrix of bytes, as an array of objects: numpy would take a list of bytes for text."""
    split = np.empty(len(rows), dtype=object)
    split[:] = rows.view(f"V{rows.shape[1]}").ravel().tolist()
    return split


ELEMENT: dict[str, tuple[int, Callable[[pl.Series, bytes], list[bytes]]]] = {
    "BYTES": (LENGTH, _texts),
    "STRING": (LENGTH, _texts),
    "INT32": (VARINT, _whole),
    "INT64": (VARINT, _whole),
    "DOUBLE": (FIXED64, _fixed("<f8")),
    "FLOAT": (FIXED32, _fixed("<f4")),
    "BOOL": (VARINT, _truths),
    "UNIX_TIMESTAMP": (VARINT, _whole),
}
