"""What a caller may send to one release: rows by keys, whose features are looked up, or rows with every input.

The rule: a request is answered only when every row of it is exactly what the model's plan asks for; otherwise
nothing is answered and each problem names its row, its field and the way out. Valid rows are read quickly
(`Cells`); only a request that could not be proved valid pays for finding out what is wrong with it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import count, islice
from typing import Any, Self

from mlops_assets.input_schema import InputSchema
from mlops_assets.serving import answers
from mlops_assets.serving.answers import RowInputs
from mlops_assets.serving.cells import Cell, Cells, Row
from mlops_assets.serving.plan import FeaturePlan
from mlops_assets.serving.problems import MAX_PROBLEMS, InvalidRequestError, problems
from mlops_assets.serving.raw import Raw, Table

__all__ = ["Form", "InvalidRequestError", "new_id"]

Given = Sequence[Mapping[str, Any]]


class Ids:
    """Request ids for rows that bring none: unique over processes and restarts, made in a tenth of a microsecond."""

    def __init__(self) -> None:
        self._again()
        os.register_at_fork(after_in_child=self._again)

    def _again(self) -> None:
        self._process = secrets.token_hex(8)
        self._count = count()

    def one(self) -> str:
        return f"{self._process}{next(self._count):x}"


new_id = Ids().one


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
        request = [Cell(field.name, field.dtype, True, None, field.minimum, field.maximum) for field in plan.request]
        inputs = [Cell(column.name, column.dtype, True, column.size) for column in schema.columns]
        return cls(plan, schema, Cells.of(inputs), Cells.of([*keys, *request]))

    def read(self, raw: Raw, places: Sequence[int] | None = None) -> answers.Question:
        """The question that the rows (or those at `places`) ask. InvalidRequestError when any is not as asked for."""
        if isinstance(raw, Table):
            from mlops_assets.serving.table import read_table

            return read_table(self, raw, places)
        rows = raw.rows
        if places is not None:
            _refuse_mixed(rows)
            rows = [rows[place] for place in places]
        return self._full(rows, raw.at, places) if "features" in rows[0] else self._keyed(rows, raw.at, places)

    def _full(self, rows: Given, at: datetime, places: Sequence[int] | None) -> answers.Question:
        """Rows that bring every input."""
        values = self._proved(self.inputs, [row.get("features") for row in rows])
        alone = max(map(len, rows)) == 1
        if values is None or not (alone or self._fine_beside_features(rows)):
            self._refuse(rows, places)
            values = [self.inputs.values(row["features"]) for row in rows]
        if alone:
            return answers.Question(at, [new_id() for _ in rows], {}, None, RowInputs(values))
        named = [key for key in self.plan.join_keys if any(key in row for row in rows)]
        keys = {key: [row.get(key) for row in rows] for key in named}
        return answers.Question(at, self._ids(rows), keys, None, RowInputs(values))

    def _keyed(self, rows: Given, at: datetime, places: Sequence[int] | None) -> answers.Question:
        """Rows of join keys and request features."""
        values = self._proved(self.asked, rows, self.plan.key)
        if values is None or not self._fine_ids(rows):
            self._refuse(rows, places)
            values = [*map(self.asked.values, rows)]
        keys = dict(zip(self.plan.join_keys, zip(*values, strict=True), strict=False))
        return answers.Question(at, self._ids(rows), keys, rows)

    def _proved(self, cells: Cells, rows: Sequence[Any], optional: str | None = None) -> list[Row] | None:
        """The values of rows that certainly hold these cells, valid, and nothing else but the `optional` one."""
        try:
            values = [*map(cells.values, rows)]
        except (KeyError, TypeError):  # one lacks a cell, or is no object
            return None
        size = len(cells.cells)
        if optional is None or optional in self.plan.join_keys:
            exact = {*map(len, rows)} == {size}
        else:
            exact = all(len(row) == size + (optional in row) for row in rows)
        return values if exact and cells.surely_valid(values) else None

    def _fine_beside_features(self, rows: Given) -> bool:
        """Is what stands beside `features` certainly valid: the label key, join keys, nothing else?"""
        asked = {self.plan.key, "features", *self.plan.join_keys}
        return all(row.keys() <= asked for row in rows) and self._fine_ids(rows) and self._fine_keys(rows)

    def _fine_keys(self, rows: Given) -> bool:
        keys = self.asked.cells[: len(self.plan.entities)]
        return all(Cells.of([key]).surely_valid([(row[key.name],) for row in rows if key.name in row]) for key in keys)

    def _fine_ids(self, rows: Given) -> bool:
        key = self.plan.key
        return {type(row[key]) for row in rows if key in row} <= {str, int}

    def _ids(self, rows: Given) -> list[str]:
        key = self.plan.key
        return self.ids([row.get(key) for row in rows])

    def ids(self, given: Sequence[Any]) -> list[str]:
        """The caller's own id of each row, and a new one where the label key gives none."""
        return [new_id() if one is None else str(one) for one in given]

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
