"""A request as columns: what Arrow tables and tensors hold, as numpy arrays that never become rows of objects.

A column knows what it holds, by the names a schema uses. Missing numbers are NaN, whether they came as null or as
NaN: the formats that bring columns have no other way to leave a number out, or use both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlops_assets.fields import TypeName
from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.wire.cells import Row

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(slots=True, frozen=True)
class Values:
    """One column. `data` is, by `dtype`, float64 with NaN (Float64; two-dimensional for Float64Array), int64 (Int64),
    bool (Bool), or a list of text and None (String, UnixTimestamp); `missing` marks the nulls of the arrays."""

    dtype: TypeName
    data: Any
    missing: Mask | None = None

    @property
    def size(self) -> int:
        return len(self.data)

    def null(self) -> Mask:
        """Which are missing."""
        if isinstance(self.data, list):
            return np.array([value is None for value in self.data], np.bool_)
        if self.dtype == "Float64":
            return np.isnan(self.data)
        return np.zeros(self.size, np.bool_) if self.missing is None else self.missing

    def take(self, places: Sequence[int]) -> Values:
        if isinstance(self.data, list):
            return Values(self.dtype, [self.data[place] for place in places])
        missing = None if self.missing is None else self.missing[list(places)]
        return Values(self.dtype, self.data[list(places)], missing)

    def to_list(self) -> list[Any]:
        """Python values, None where missing."""
        if isinstance(self.data, list):
            return self.data
        values: list[Any] = self.data.tolist()
        null = self.null()
        return [None if gone else value for value, gone in zip(values, null, strict=True)] if null.any() else values

    def numbers(self) -> NDArray[np.float64]:
        """float64 with NaN where missing; two-dimensional for arrays. Not of text."""
        numbers: NDArray[np.float64] = self.data.astype(np.float64, copy=self.missing is not None)
        if self.missing is not None:
            numbers[self.missing] = np.nan
        return numbers


@dataclass(slots=True, frozen=True)
class ColumnInputs:
    """Many rows of all inputs, column by column in the plan's order."""

    given: Sequence[Values]

    def matrix(self, schema: InputSchema) -> NDArray[np.float32]:
        """As `InputSchema.encode` has it, for columns that were found valid."""
        matrix = np.empty((self.given[0].size, len(schema.numbers)), np.float32)
        at = 0
        for column, values in zip(schema.columns, self.given, strict=True):
            width = column.size or 1
            numbers = column.codes(values.data) if column.dtype == "String" else values.numbers()
            matrix[:, at : at + width] = np.asarray(numbers).reshape(-1, width)
            at += width
        return matrix

    def rows(self) -> list[Row]:
        return list(zip(*(values.to_list() for values in self.given), strict=True))

    def columns(self) -> list[Any]:
        return [values.data if values.dtype == "Float64" else values.to_list() for values in self.given]

    def take(self, places: Sequence[int]) -> ColumnInputs:
        return ColumnInputs([values.take(places) for values in self.given])


def asked_rows(columns: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Columns as look-up wants them: a dict a row."""
    lists = zip(*(values.to_list() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in lists]
