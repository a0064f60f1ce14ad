"""Named values in a fixed order, and a quick proof that rows of them are valid.

The proof is one-sided: yes is certain, no means that `problems` has to look. So it may be coarse where that is
cheap: a row of ten numbers is proved by the types it is made of, remembered from the last row of that kind, and by
one norm over its numbers, which no infinite, NaN or enormous one can pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import hypot
from operator import itemgetter
from typing import Any, Self

from mlops_assets.fields import TypeName
from mlops_assets.serving.wire.problems import VALID

FEW_ROWS = 8  # up to here row by row is quicker than column by column
KINDS_KEPT = 512  # kinds of rows remembered; beyond it all are learnt again
SMALL = float(2**63)  # a norm below it proves that every number fits Int64 and float32
TYPES: dict[TypeName, frozenset[type]] = {
    "Bool": frozenset({bool}),
    "Int64": frozenset({int}),
    "Float64": frozenset({int, float}),
    "String": frozenset({str}),
    "UnixTimestamp": frozenset({str}),
    "Float64Array": frozenset({list}),
}
NULL = frozenset({type(None)})
Proof = Callable[[Sequence[Any]], bool]
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Cell:
    """One value of a row: `size` is the length of an array, `low` and `high` are inclusive."""

    name: str
    dtype: TypeName
    nullable: bool = True
    size: int | None = None
    low: float | None = None
    high: float | None = None

    @property
    def types(self) -> frozenset[type]:
        return TYPES[self.dtype] | NULL if self.nullable else TYPES[self.dtype]

    def proof(self) -> Proof | None:
        """What has to hold for values of the right types, None of them null; None when nothing more has to."""
        if self.dtype == "Float64Array":
            return lambda arrays: all(map(self._fine_array, arrays))
        if self.dtype == "UnixTimestamp":
            return lambda times: all(map(VALID["UnixTimestamp"][0], times))
        if not self.is_number:
            return None
        if not self.is_bounded:
            return lambda numbers: hypot(*numbers) < SMALL
        low, high = self.range
        return lambda numbers: hypot(*numbers) < SMALL and low <= min(numbers) and max(numbers) <= high

    def _fine_array(self, array: list[Any]) -> bool:
        low, high = self.range
        return (
            (self.size is None or len(array) == self.size)
            and set(map(type, array)) <= TYPES["Float64"]
            and hypot(*array) < SMALL
            and (not array or (low <= min(array) and max(array) <= high))
        )

    @property
    def is_number(self) -> bool:
        return self.dtype in ("Int64", "Float64")

    @property
    def is_bounded(self) -> bool:
        return self.low is not None or self.high is not None

    @property
    def range(self) -> tuple[float, float]:
        return (float("-inf") if self.low is None else self.low), (float("inf") if self.high is None else self.high)


@dataclass(frozen=True)
class Cells:
    """Some cells in order. `values(row)` gives a row's in that order; KeyError or TypeError when it lacks one."""

    cells: tuple[Cell, ...]
    values: Callable[[Any], Row]
    _kinds: dict[tuple[type, ...], Proof] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: Sequence[Cell]) -> Self:
        return cls(tuple(cells), getter([cell.name for cell in cells]))

    def proved(self, rows: Sequence[Any], *, exactly: bool = True) -> list[Row] | None:
        """The values of rows that certainly hold valid ones, and `exactly` these cells; None where any may not."""
        try:
            values = [*map(self.values, rows)]
        except (KeyError, TypeError):  # one lacks a cell, or is no object
            return None
        fine = (not exactly or {*map(len, rows)} == {len(self.cells)}) and self.surely_valid(values)
        return values if fine else None

    def surely_valid(self, rows: Sequence[Row]) -> bool:
        """Is every value certainly what its cell asks for? No only means that it takes a closer look."""
        if len(rows) > FEW_ROWS:
            return all(map(_valid_column, self.cells, zip(*rows, strict=True)))
        for row in rows:
            kind = tuple(map(type, row))
            if not (self._kinds.get(kind) or self._kind(kind))(row):
                return False
        return True

    def _kind(self, kind: tuple[type, ...]) -> Proof:
        """What proves a row made of these types."""
        if not all(one in cell.types for cell, one in zip(self.cells, kind, strict=True)):
            return _never
        if len(self._kinds) >= KINDS_KEPT:  # whoever sends many kinds may not push out those that others send
            self._kinds.clear()
        proof = self._kinds[kind] = _proof_of_kind(self.cells, kind)
        return proof


def _never(_: Sequence[Any]) -> bool:
    return False


def getter(names: Sequence[Any]) -> Callable[[Any], Row]:
    """`itemgetter` that gives a tuple for one name and for none, too."""
    if len(names) > 1:
        return itemgetter(*names)
    return (lambda row: (row[names[0]],)) if names else (lambda _: ())


def _proof_of_kind(cells: Sequence[Cell], kind: tuple[type, ...]) -> Proof:
    """What proves a row made of these types: one norm over its numbers, their bounds, what else single values need."""
    given = [(place, cell) for place, cell in enumerate(cells) if kind[place] is not type(None)]
    numbers = [place for place, cell in given if cell.is_number]
    bounds = [(place, *cell.range) for place, cell in given if cell.is_number and cell.is_bounded]
    rest = [(place, proof) for place, cell in given if not cell.is_number and (proof := cell.proof())]
    pick = getter(numbers) if len(numbers) < len(cells) else tuple

    def proof_of_row(row: Sequence[Any]) -> bool:
        if not hypot(*pick(row)) < SMALL:
            return False
        for place, low, high in bounds:
            if not low <= row[place] <= high:
                return False
        return not rest or all(fine((row[place],)) for place, fine in rest)

    return proof_of_row


def _valid_column(cell: Cell, column: Sequence[Any]) -> bool:
    types = {*map(type, column)}
    if not types <= cell.types:
        return False
    proof = cell.proof()
    if proof is None:
        return True
    given = [value for value in column if value is not None] if type(None) in types else column
    return not given or proof(given)
