"""What a model reads: its columns in order, their types, and how a value becomes a float32.

Training encodes whole frames, serving encodes a few lists of Python values; both must give the very
same numbers, or the endpoint would answer with another model than the one that was judged. Nulls and
NaN become NaN; a string becomes its index in the vocabulary seen in training, an unseen one NaN; a
Boolean becomes 0 or 1; an array becomes as many numbers as it is long. An infinite value (or one beyond
float32) is refused by both.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from mlops_assets.fields import Field

Dtype = Literal["Bool", "Int64", "Float64", "String", "Float64Array"]
NAN = float("nan")
INFINITE = (b"\x80\x7f", b"\x80\xff")  # how a float32 that is infinite ends, little-endian; few others hold them
FEW_ROWS = 8  # up to here row by row is quicker than column by column


class _Codes(dict[Any, float]):
    """What each category is encoded as; NaN for none, and for one that training never saw."""

    def __missing__(self, _: Any) -> float:
        return NAN


class InputError(ValueError):
    """Rows offered to a model do not fit its schema."""

    @classmethod
    def of(cls, column: str, given: object, allowed: object, fix: str) -> Self:
        return cls(f"Input column {column!r}: {given} (allowed: {allowed}). {fix}")


@dataclass(frozen=True)
class Column:
    """One input of a model: `categories` is the vocabulary seen in training (String), `size` an array's length."""

    name: str
    dtype: Dtype
    categories: tuple[str, ...] = ()
    description: str = ""
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    size: int | None = None

    @cached_property
    def index(self) -> dict[Any, float]:
        """The number each category is encoded as, and NaN any other."""
        return _Codes((category, float(at)) for at, category in enumerate(self.categories))

    def codes(self, values: Sequence[Any]) -> list[float]:
        """What the values of a String column are encoded as."""
        return [*map(self.index.__getitem__, values)]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers it becomes: its own, or one for each place of an array."""
        return (self.name,) if self.size is None else tuple(f"{self.name}[{place}]" for place in range(self.size))

    def expressions(self, frame: pl.DataFrame) -> list[pl.Expr]:
        """`numbers` as Float64 columns; InputError when the frame lacks the column or holds another type."""
        import polars as pl

        if self.size is None:
            return [self.expression(frame).alias(self.name)]
        column = self.expression(frame)
        return [
            column.list.get(place, null_on_oob=True).cast(pl.Float64).fill_null(NAN).alias(name)
            for place, name in enumerate(self.numbers)
        ]

    def expression(self, frame: pl.DataFrame) -> pl.Expr:
        """The column as Float64, an array as it is; InputError when the frame lacks it or holds another type."""
        import polars as pl

        if self.name not in frame.columns:
            raise InputError.of(self.name, "is missing", f"columns {', '.join(frame.columns)}", "Add it to the rows.")
        given, column = frame.schema[self.name], pl.col(self.name)
        if given != pl.Null and not _fits(given, self.dtype):
            raise InputError.of(self.name, f"has type {given}", self.dtype, "Cast it, or change the declared field.")
        if self.dtype == "String" and given != pl.Null:
            codes = list(self.index.values())
            column = column.replace_strict(list(self.index), codes, default=None, return_dtype=pl.Float64)
        if self.size is not None:
            return column.cast(pl.List(pl.Float64))
        return column.cast(pl.Float64).fill_null(NAN)


@dataclass(frozen=True)
class InputSchema:
    """The input columns of one trained model, in the order of its matrix."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, frame: pl.DataFrame, fields: Mapping[str, Field]) -> Self:
        """The schema of `fields`, with the vocabularies found in `frame` (training rows only)."""
        return cls(tuple(_column(frame, name, field) for name, field in fields.items()))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """The columns of the matrix, in order."""
        return tuple(name for column in self.columns for name in column.numbers)

    @cached_property
    def _arrays(self) -> list[tuple[int, int]]:
        """Where the arrays stand, the last first, and how long they are."""
        sized = [(at, column.size) for at, column in enumerate(self.columns) if column.size is not None]
        return sized[::-1]

    @cached_property
    def _codes(self) -> dict[int, Callable[[Any], float]]:
        """Where the strings stand, and what turns each into a number; the rest converts by itself."""
        return {at: column.index.__getitem__ for at, column in enumerate(self.columns) if column.dtype == "String"}

    def encode(self, rows: Sequence[Sequence[Any]]) -> np.ndarray:
        """Rows of Python values in column order, as float32 of shape (rows, numbers).

        Raises InputError for a row or an array of another length, a value that is no number where one is
        wanted, an infinite value.
        """
        import numpy as np

        try:
            if {*map(len, rows)} == {len(self.columns)}:
                matrix = self._encode_quickly(rows)
                if matrix is not None:
                    return matrix
            with np.errstate(over="ignore"):
                matrix = np.array([self._numbers(row) for row in rows], dtype=np.float32)
        except (TypeError, ValueError, IndexError, OverflowError) as problem:
            raise self._misfit(rows) from problem
        return self._finite(matrix.reshape(len(rows), len(self.numbers)))

    def _encode_quickly(self, rows: Sequence[Sequence[Any]]) -> np.ndarray | None:
        """The same for rows that are as they should be; None where any may not be.

        Packing is several times quicker than numpy's own reading of Python values, and as exact: it takes no text,
        and no number that float32 would make infinite. Many rows with text are packed column by column.
        """
        import numpy as np

        by_column = len(rows) > FEW_ROWS and bool(self._codes) and not self._arrays
        numbers: Any
        if by_column:
            columns = enumerate(zip(*rows, strict=True))
            numbers = [map(self._codes[at], column) if at in self._codes else column for at, column in columns]
        else:
            numbers = map(self._numbers, rows) if self._codes or self._arrays else rows
        packed = _packed([*chain.from_iterable(numbers)], len(rows) * len(self.numbers))
        if packed is None:
            return None
        matrix = np.frombuffer(packed, np.float32)
        if any(end in packed for end in INFINITE) and np.isinf(matrix).any():
            return None
        if by_column:
            return np.ascontiguousarray(matrix.reshape(len(self.numbers), len(rows)).T)
        return matrix.reshape(len(rows), len(self.numbers))

    def encode_frame(self, frame: pl.DataFrame) -> np.ndarray:
        """The same as `encode` for a whole frame that holds the columns by name, in any order."""
        import numpy as np

        encoded = frame.select(number for column in self.columns for number in column.expressions(frame))
        with np.errstate(over="ignore"):
            return self._finite(np.ascontiguousarray(encoded.to_numpy(), dtype=np.float32))

    def to_json(self) -> dict[str, Any]:
        return {"columns": [asdict(column) | {"categories": list(column.categories)} for column in self.columns]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(tuple(Column(**{**item, "categories": tuple(item["categories"])}) for item in document["columns"]))

    def _numbers(self, row: Sequence[Any]) -> list[Any]:
        numbers = list(row)
        for at, code in self._codes.items():
            numbers[at] = code(numbers[at])
        for at, size in self._arrays:
            given = numbers[at]
            numbers[at : at + 1] = [NAN] * size if given is None else list(given)
        # numpy would read the string "2" as the number 2
        if len(row) != len(self.columns) or len(numbers) != len(self.numbers) or str in map(type, numbers):
            raise TypeError(row)
        return numbers

    def _finite(self, matrix: np.ndarray) -> np.ndarray:
        import numpy as np

        if np.isinf(matrix).any():
            name = self.numbers[int(np.isinf(matrix).any(axis=0).argmax())]
            raise InputError.of(
                name, "holds an infinite value or one beyond float32", "finite numbers, null, NaN", "Make it null."
            )
        return matrix

    def _misfit(self, rows: Sequence[Sequence[Any]]) -> InputError:
        """The first thing wrong with rows that numpy would not take."""
        for row in rows:
            if len(row) != len(self.columns):
                return InputError.of(
                    "*", f"a row has {len(row)} values", f"{len(self.columns)}: {self.names}", "Give all."
                )
            for column, value in zip(self.columns, row, strict=True):
                if value is not None and not _takes(column, value):
                    return InputError.of(column.name, f"is {value!r}", f"{column.dtype} or null", "Mend the value.")
        return InputError.of("*", "an integer is too large", "numbers within float32", "Make it null.")


def _packed(numbers: list[Any], count: int) -> bytearray | None:
    """Numbers and nulls as float32 bytes, as writable as numpy's own; None where one is neither, or too large."""
    packed = bytearray(4 * count)
    try:
        try:
            struct.pack_into(f"<{count}f", packed, 0, *numbers)
        except struct.error:  # what it says of a null
            struct.pack_into(f"<{count}f", packed, 0, *[NAN if number is None else number for number in numbers])
    except (struct.error, OverflowError):
        return None
    return packed


def _takes(column: Column, value: Any) -> bool:
    """Is it a Python value of the column's type?"""
    if column.size is not None:
        numbers = value if isinstance(value, list | tuple) else []
        return len(numbers) == column.size and all(isinstance(one, float | int | None) for one in numbers)
    return isinstance(value, str if column.dtype == "String" else float | int)


def _fits(given: pl.DataType, dtype: Dtype) -> bool:
    import polars as pl

    if dtype == "Bool":
        return given == pl.Boolean
    if dtype == "Float64Array":
        return isinstance(given, pl.List | pl.Array)
    return given == pl.String if dtype == "String" else given.is_numeric()


def _column(frame: pl.DataFrame, name: str, field: Field) -> Column:
    if field.dtype == "UnixTimestamp":
        raise InputError.of(
            name, "is a UnixTimestamp", "Bool, Int64, Float64, String", "Derive a number, e.g. hours since."
        )
    column = Column(name, field.dtype, (), field.description, field.unit, field.minimum, field.maximum, field.size)
    column.expression(frame)
    return Column(**{**asdict(column), "categories": _vocabulary(frame, name)}) if field.dtype == "String" else column


def _vocabulary(frame: pl.DataFrame, name: str) -> tuple[str, ...]:
    return tuple(frame[name].drop_nulls().unique().sort().to_list())
