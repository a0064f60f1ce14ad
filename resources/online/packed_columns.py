"""Packed rows made from columns: what `Layout.encode` gives for a row, for all rows of a frame at once.

Used where tables are published in bulk. The rule that must never break: byte for byte the same as row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resources.online.packed_row import Code, Layout, to_json

if TYPE_CHECKING:
    import polars as pl

    Numbers = np.ndarray[Any, np.dtype[Any]]

CODES: dict[str, Code] = {
    "BOOL": "b",
    "INT32": "i",
    "INT64": "i",
    "FLOAT": "f",
    "DOUBLE": "f",
    "UNIX_TIMESTAMP": "t",
    "STRING": "s",
    "FLOAT_LIST": "a",
    "DOUBLE_LIST": "a",
}
NUMPY = {"b": "?", "i": ">i8", "f": ">f8", "t": ">i8", "s": ">u4", "a": ">u4", "j": ">u4"}


def layout_of(kinds: dict[str, str]) -> Layout:
    """The layout of a view whose features have those Feast types; what is no number, text or vector is JSON."""
    return Layout(tuple(kinds), tuple(CODES.get(kind, "j") for kind in kinds.values()))


def pack(layout: Layout, columns: Sequence[pl.Series], event_ts: Numbers, created: Numbers) -> list[bytes]:
    """One packed row per row of the columns, which are in the layout's order; times are microseconds."""
    fields = [(f"value{place}", NUMPY[code]) for place, code in enumerate(layout.codes)]
    head = [("event_ts", ">i8"), ("created", ">i8"), ("id", "V8"), ("nulls", "u1", (layout.null_bytes,))]
    table = np.zeros(len(event_ts), dtype=np.dtype([*head, *fields]))
    table["event_ts"], table["created"], table["id"] = event_ts, created, np.void(layout.id)
    tails = []
    for (name, _), code, column in zip(fields, layout.codes, columns, strict=True):
        if code in "saj":
            tails.append(tail := _tail(column, code))
            table[name] = [len(part) for part in tail]
        else:
            table[name] = _numbers(column, code)
    if columns:
        nulls = np.stack([column.is_null().to_numpy() for column in columns], axis=1)
        table["nulls"] = np.packbits(nulls, axis=1, bitorder="little")
    heads: list[bytes] = table.view(f"V{table.dtype.itemsize}").tolist()
    return [b"".join(parts) for parts in zip(heads, *tails, strict=True)] if tails else heads


def _numbers(column: pl.Series, code: Code) -> Numbers:
    import polars as pl

    if code == "t":
        return epoch(column).fill_null(0).to_numpy()
    types: dict[str, Any] = {"b": pl.Boolean, "i": pl.Int64, "f": pl.Float64}
    return column.cast(types[code]).fill_null(False if code == "b" else 0).to_numpy()


def epoch(column: pl.Series) -> pl.Series:
    """Microseconds since 1970 UTC; a date is its midnight, an integer is seconds as Feast has them."""
    import polars as pl

    if column.dtype.is_integer():
        return column.cast(pl.Int64) * 1_000_000
    return column.cast(pl.Datetime("us", getattr(column.dtype, "time_zone", None))).dt.epoch("us")


def _tail(column: pl.Series, code: Code) -> list[bytes]:
    """The bytes behind the fixed part; none for a null."""
    values = column.to_list() if code != "a" else _vectors(column)
    if code == "s":
        return [b"" if value is None else str(value).encode() for value in values]
    return values if code == "a" else [b"" if value is None else to_json(value) for value in values]


def _vectors(column: pl.Series) -> list[bytes]:
    import polars as pl

    lists = column.cast(pl.List(pl.Float64))
    sizes = lists.list.len().fill_null(0)
    raw = lists.filter(sizes > 0).explode().to_numpy().astype(">f8").tobytes()
    ends = (np.cumsum(sizes.to_numpy()) * 8).tolist()
    return [raw[start:end] for start, end in zip([0, *ends], ends, strict=False)]
