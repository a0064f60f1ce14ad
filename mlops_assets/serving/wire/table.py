"""What a release reads out of a table: either every input by name, or join keys and request features.

The same strictness as for rows, column by column: a wrong column is named, a wrong value in it by its row too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.answers import Question
from mlops_assets.serving.wire.cells import Cell
from mlops_assets.serving.wire.columns import ColumnInputs, Mask, Values, asked_rows
from mlops_assets.serving.wire.ids import new_ids
from mlops_assets.serving.wire.problems import (
    FLOAT32_MAX,
    MAX_PROBLEMS,
    VALID,
    InvalidRequestError,
    Problem,
    bounds_fix,
    shown,
)
from mlops_assets.serving.wire.raw import Table

if TYPE_CHECKING:
    from mlops_assets.serving.wire.form import Form

Columns = Mapping[str, Values]


def read_table(form: Form, table: Table, places: Sequence[int] | None = None) -> Question:
    """The question that its rows (or those at `places`) ask. InvalidRequestError when it is not as asked for."""
    columns = _as_columns(form.schema, table.columns)
    if places is not None:
        columns = {name: values.take(places) for name, values in columns.items()}
    keys = form.asked.cells[: len(form.plan.entities)]
    full = _is_full(form, columns)
    wanted = form.inputs.cells if full else form.asked.cells
    cells = {cell.name: cell for cell in [*(key for key in keys if full and key.name in columns), *wanted]}
    if found := [*islice(_problems(form, columns, cells), MAX_PROBLEMS)]:
        raise InvalidRequestError([_numbered(problem, places) for problem in found])
    fitted = {name: _fitted(columns[name], cell) for name, cell in cells.items()}
    named = {key.name: fitted[key.name].to_list() for key in keys if key.name in fitted}
    ids = form.ids(columns[form.plan.key].to_list()) if form.plan.key in columns else new_ids(_size(columns))
    if full:
        return Question(table.at, ids, named, None, ColumnInputs([fitted[name] for name in form.plan.inputs]))
    return Question(table.at, ids, named, asked_rows(fitted))


def _is_full(form: Form, columns: Columns) -> bool:
    """Does it bring the inputs themselves? Where columns are missing, what only such a table has tells."""
    asked = {cell.name for cell in form.asked.cells}
    given = columns.keys() - ({form.plan.key} - asked)
    inputs = set(form.plan.inputs)
    return given != asked and (inputs <= given or bool(given & inputs - asked))


def _as_columns(schema: InputSchema, columns: Columns) -> Columns:
    """A lone matrix is all numbers of a model in their order; it cannot hold text."""
    (name, only), *others = columns.items()
    if others or name in schema.names or only.dtype not in ("Float64", "Float64Array"):
        return columns
    matrix = only.numbers().reshape(only.size, -1)
    if any(column.dtype == "String" for column in schema.columns):
        texts = ", ".join(column.name for column in schema.columns if column.dtype == "String")
        raise InvalidRequestError.of("a matrix of numbers has no text", f"Send a column each; {texts} are text.", name)
    if matrix.shape[1] != len(schema.numbers):
        fix = f"Send {len(schema.numbers)} in this order: {', '.join(schema.numbers)}."
        raise InvalidRequestError.of(f"rows of {matrix.shape[1]} numbers", fix, name)
    split, at = {}, 0
    for column in schema.columns:
        width = column.size or 1
        split[column.name] = _out_of_matrix(column.name, column.dtype, matrix[:, at : at + width])
        at += width
    return split


def _out_of_matrix(name: str, dtype: str, block: np.ndarray) -> Values:
    """One input's part of a matrix; whole numbers and truths come as floats there."""
    if dtype == "Float64Array":
        return Values("Float64Array", block, np.isnan(block).all(axis=1))
    column, missing = block[:, 0], np.isnan(block[:, 0])
    if dtype == "Float64":
        return Values("Float64", column)
    numbers = np.where(missing, 0, column)
    whole = (numbers == np.trunc(numbers)) & (np.abs(numbers) < 2**63)
    fine = whole if dtype == "Int64" else np.isin(numbers, (0, 1))
    if not fine.all():
        at = int(np.argmin(fine))
        phrase = VALID["Int64"][1] if dtype == "Int64" else "0 or 1"
        raise InvalidRequestError.of(f"{numbers[at]} is not {phrase}", f"Give {name} as {phrase}.", name, row=at)
    return Values(dtype, numbers.astype(np.int64 if dtype == "Int64" else np.bool_), missing)  # type: ignore[arg-type]


def _problems(form: Form, columns: Columns, cells: Mapping[str, Cell]) -> Iterator[Problem]:
    meanings = {column.name: column.description for column in form.schema.columns}
    meanings |= {field.name: field.description for field in form.plan.request}
    meanings |= {entity.join_key: f"the key {entity.description}".strip() for entity in form.plan.entities}
    known = {form.plan.key, *cells, *form.plan.join_keys}
    for name in sorted(columns.keys() - known):
        yield Problem("unknown field", f"Leave it out. Known: {', '.join(sorted(known))}.", name)
    if form.plan.key in columns and form.plan.key not in cells:
        yield from _label_key(form.plan.key, columns[form.plan.key])
    for name, cell in cells.items():
        if name in columns:
            yield from _of_column(columns[name], cell)
        else:
            phrase = VALID[cell.dtype][1]
            yield Problem("missing", f"Give {name} as a column, each {phrase} ({meanings[name] or cell.dtype}).", name)


def _label_key(name: str, values: Values) -> Iterator[Problem]:
    if values.dtype not in ("String", "Int64") or values.null().any():
        yield Problem("not a string", "Give the id as text in every row, or leave it out to be given one.", name)


def _of_column(given: Values, cell: Cell) -> Iterator[Problem]:
    """What is wrong with one column; of its values the row is said."""
    if _surely_fine(given, cell):
        return
    phrase = VALID[cell.dtype][1]
    null = given.null()
    if not (null.all() or _may_be(given, cell)):
        yield Problem(f"a column of {given.dtype} is not {phrase}", f"Give {cell.name} as {phrase}.", cell.name)
        return
    values = _fitted(given, cell)
    if not cell.nullable:
        fix = f"Give {cell.name} as {phrase}; without its key nothing can be looked up."
        yield from (Problem("null", fix, cell.name, row) for row in _rows_of(null))
    if cell.dtype == "Float64Array" and cell.size is not None and values.data.shape[1] != cell.size:
        fix = f"{cell.name} has {cell.size} numbers."
        yield Problem(f"an array of {values.data.shape[1]} numbers", fix, cell.name)
        return
    for row in _rows_of(_invalid(values, null)):
        yield Problem(f"{_shown(values, row)} is not {phrase}", f"Give {cell.name} as {phrase}.", cell.name, row)
    for row in _rows_of(_out_of_bounds(values, cell)):
        fix = bounds_fix(cell.name, cell.low, cell.high)
        yield Problem(f"{_shown(values, row)} is out of bounds", fix, cell.name, row)


def _surely_fine(given: Values, cell: Cell) -> bool:
    """The usual column, at a look: text, or numbers of which none is bounded and none too large."""
    if given.dtype != cell.dtype or not cell.nullable or cell.is_bounded:
        return False
    return cell.dtype == "String" or (cell.dtype == "Float64" and not np.any(np.abs(given.data) > FLOAT32_MAX))


def _may_be(given: Values, cell: Cell) -> bool:
    return given.dtype == cell.dtype or (given.dtype, cell.dtype, cell.size) in (
        ("Int64", "Float64", None),
        ("String", "UnixTimestamp", None),
        ("Float64", "Float64Array", 1),
        ("Int64", "Float64Array", 1),
    )


def _fitted(given: Values, cell: Cell) -> Values:
    """The column as the type it is asked for; one of nothing but nulls has none of its own."""
    if given.dtype == cell.dtype:
        return given
    if given.null().all():
        return nothing(cell, given.size)
    if cell.dtype == "UnixTimestamp":
        return replace(given, dtype="UnixTimestamp")
    if cell.dtype == "Float64Array":
        return Values("Float64Array", given.numbers().reshape(-1, 1), given.null())
    return Values("Float64", given.numbers())


def nothing(cell: Cell, size: int) -> Values:
    """A column of nulls."""
    if cell.dtype in ("String", "UnixTimestamp"):
        return Values(cell.dtype, [None] * size)
    shape = (size, cell.size or 0) if cell.dtype == "Float64Array" else (size,)
    kind = {"Bool": np.bool_, "Int64": np.int64}.get(cell.dtype, np.float64)
    return Values(cell.dtype, np.full(shape, np.nan if kind is np.float64 else 0, kind), np.ones(size, np.bool_))


def _invalid(values: Values, null: Mask) -> Mask:
    """Which values of the right type are none that may be sent."""
    if values.dtype == "UnixTimestamp":
        return np.array([text is not None and not VALID["UnixTimestamp"][0](text) for text in values.data], np.bool_)
    if values.dtype == "Float64":
        return np.abs(values.data) > FLOAT32_MAX
    if values.dtype == "Float64Array":
        fine: Mask = np.all(np.abs(values.data) <= FLOAT32_MAX, axis=1)
        return ~null & ~fine
    return np.zeros(values.size, np.bool_)


def _out_of_bounds(values: Values, cell: Cell) -> Mask:
    if (cell.low is None and cell.high is None) or cell.dtype not in ("Int64", "Float64", "Float64Array"):
        return np.zeros(values.size, np.bool_)
    numbers = values.numbers().reshape(values.size, -1)
    low, high = (-np.inf if cell.low is None else cell.low), (np.inf if cell.high is None else cell.high)
    outside: Mask = np.any((numbers < low) | (numbers > high), axis=1)
    return outside


def _rows_of(wrong: Mask) -> list[int]:
    return np.flatnonzero(wrong)[:MAX_PROBLEMS].tolist() if wrong.any() else []


def _shown(values: Values, row: int) -> str:
    return shown(values.data[row] if isinstance(values.data, list) else values.data[row].tolist())


def _numbered(problem: Problem, places: Sequence[int] | None) -> Problem:
    """With the row's number in the request."""
    return problem if places is None or problem.row is None else replace(problem, row=places[problem.row])


def _size(columns: Columns) -> int:
    return next(iter(columns.values())).size
