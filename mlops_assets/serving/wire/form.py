"""What a caller may send to one release: rows by keys, whose features are looked up, or rows with every input.

The rule: a request is answered only when every row of it is exactly what the model's plan asks for; otherwise
nothing is answered and each problem names its row, its field and the way out. Valid rows are read quickly
(`Cells`); only a request that could not be proved valid pays for finding out what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any, Self

from mlops_assets.input_schema import InputSchema
from mlops_assets.serving import answers
from mlops_assets.serving.answers import RowInputs
from mlops_assets.serving.plan import FeaturePlan
from mlops_assets.serving.wire.cells import Cell, Cells
from mlops_assets.serving.wire.ids import new_ids
from mlops_assets.serving.wire.problems import MAX_PROBLEMS, InvalidRequestError, problems
from mlops_assets.serving.wire.raw import Raw, Table

__all__ = ["Form", "InvalidRequestError"]

Given = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Form:
    """What one release asks of a row, compiled once. Rows bring `inputs` under `features`, or `asked` by name."""

    plan: FeaturePlan
    schema: InputSchema
    inputs: Cells
    asked: Cells

    @classmethod
    def of(cls, plan: FeaturePlan, schema: InputSchema) -> Self:
        keys = [Cell(entity.join_key, entity.dtype, nullable=False) for entity in plan.entities]
        request = [Cell(one.name, one.dtype, True, one.size, one.minimum, one.maximum) for one in plan.request]
        inputs = [Cell(column.name, column.dtype, True, column.size) for column in schema.columns]
        return cls(plan, schema, Cells.of(inputs), Cells.of([*keys, *request]))

    def read(self, raw: Raw, places: Sequence[int] | None = None) -> answers.Question:
        """The question that the rows (or those at `places`) ask. InvalidRequestError when any is not as asked for."""
        if isinstance(raw, Table):
            from mlops_assets.serving.wire.table import read_table

            return read_table(self, raw, places)
        rows = raw.rows
        if places is not None:
            _refuse_mixed(rows)
            rows = [rows[place] for place in places]
        return self._full(rows, raw.at, places) if "features" in rows[0] else self._keyed(rows, raw.at, places)

    def _full(self, rows: Given, at: datetime, places: Sequence[int] | None) -> answers.Question:
        """Rows that bring every input."""
        features = [row.get("features") for row in rows]
        values = self.inputs.proved(features)
        if values is not None and {*map(len, rows)} == {1}:  # nothing beside
            return answers.Question(at, new_ids(len(rows)), {}, None, RowInputs(values))
        if values is None or not self._fine_beside_features(rows):
            self._refuse(rows, places)
            values = [*map(self.inputs.values, features)]
        named = [key for key in self.plan.join_keys if any(key in row for row in rows)]
        keys = {key: [row.get(key) for row in rows] for key in named}
        return answers.Question(at, self._ids(rows), keys, None, RowInputs(values))

    def _fine_beside_features(self, rows: Given) -> bool:
        """Is what stands beside `features` certainly valid: the label key, join keys, nothing else?"""
        allowed = self._beside
        return (
            all(row.keys() <= allowed for row in rows)
            and {type(row[self.plan.key]) for row in rows if self.plan.key in row} <= {str, int}
            and all(key.surely_valid([(row[name],) for row in rows if name in row]) for name, key in self._keys.items())
        )

    @cached_property
    def _beside(self) -> frozenset[str]:
        return frozenset({self.plan.key, "features", *self.plan.join_keys})

    @cached_property
    def _keys(self) -> dict[str, Cells]:
        """Each join key by itself: beside `features` any of them may be left out."""
        return {cell.name: Cells.of([cell]) for cell in self.asked.cells[: len(self.plan.entities)]}

    def _keyed(self, rows: Given, at: datetime, places: Sequence[int] | None) -> answers.Question:
        """Rows of join keys and request features."""
        values = self.asked.proved(rows, exactly=False)
        ids = None if values is None else self._proved_ids(rows)
        if values is None or ids is None:
            self._refuse(rows, places)
            values, ids = [*map(self.asked.values, rows)], self._ids(rows)
        keys = {key: [row[place] for row in values] for place, key in enumerate(self.plan.join_keys)}
        return answers.Question(at, ids, keys, rows)

    def _proved_ids(self, rows: Given) -> list[str] | None:
        """The ids of rows that hold every cell; None where anything else, or no proper id, may be beside."""
        key, size = self.plan.key, len({cell.name for cell in self.asked.cells})  # a join key may be a feature too
        lengths = {*map(len, rows)}
        if key in self._keys:
            return self._ids(rows) if lengths == {size} else None
        if lengths == {size}:
            return new_ids(len(rows))
        given = [row[key] for row in rows if key in row]
        fine = {*map(type, given)} <= {str, int} and sum(map(len, rows)) == size * len(rows) + len(given)
        return self._ids(rows) if fine else None

    def _ids(self, rows: Given) -> list[str]:
        key = self.plan.key
        return self.ids([row.get(key) for row in rows])

    def ids(self, given: Sequence[Any]) -> list[str]:
        """The caller's own id of each row, and a new one where the label key gives none."""
        return [new_ids(1)[0] if one is None else str(one) for one in given]

    def _refuse(self, rows: Given, places: Sequence[int] | None) -> None:
        """Raise what is wrong with the rows; nothing may be, where they only could not be proved valid."""
        _refuse_mixed(rows)
        numbers = range(len(rows)) if places is None else places
        found = (
            replace(problem, row=number)
            for number, row in zip(numbers, rows, strict=True)
            for problem in problems(row, self.plan, self.schema)
        )
        if some := [*islice(found, MAX_PROBLEMS)]:
            raise InvalidRequestError(some)


def _refuse_mixed(rows: Given) -> None:
    """Rows with features and rows to be looked up are two requests: they are not answered by the same stages."""
    full = "features" in rows[0]
    for number, row in enumerate(rows):
        if ("features" in row) != full:
            problem = f"brings {'no features' if full else 'features'}, row 0 {'does' if full else 'does not'}"
            fix = "Send rows by keys and rows with features as two requests."
            raise InvalidRequestError.of(problem, fix, "features", row=number)
