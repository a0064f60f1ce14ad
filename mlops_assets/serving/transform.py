"""On-demand features: Polars expressions that training applies to whole tables and the endpoint to its requests.

A transform travels in the feature plan as data, Polars' own form of an expression. The rule that must never break:
a row's result depends on that row alone, or one answer would depend on who else asked, and on no Python
function, since those would have to be loaded as code.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.fields import Field, TypeName

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.declarations import ComputedSelection

PYTHON = b"PLPY"  # how Polars marks a pickled Python function in a serialised expression


class NotRowByRowError(ValueError):
    """An expression cannot be trusted to give the same for one row and for many."""

    fix = "Use Polars expressions that make each row from that row."

    @classmethod
    def of(cls, feature: str, problem: str) -> Self:
        return cls(f"{feature!r} {problem}")


def refuse_unless_row_by_row(feature: str, expression: pl.Expr, inputs: Mapping[str, Field]) -> None:
    """Raise NotRowByRowError for one that calls Python, looks at other rows, or gives another number of rows.

    Judged by what the expression is made of and, since that misses a column used as a set, on a few rows too.
    """
    if PYTHON in expression.meta.serialize():
        raise NotRowByRowError.of(feature, "calls a Python function")
    if not expression.meta.root_names():
        raise NotRowByRowError.of(feature, "reads no input")
    alone = expression.meta.is_length_preserving() and all(map(_separable, _nodes(expression)))
    if not (alone and _same_one_by_one(expression, inputs)):
        raise NotRowByRowError.of(feature, "looks at other rows than its own")


def _nodes(expression: pl.Expr) -> Iterator[pl.Expr]:
    yield expression
    for part in expression.meta.pop():
        yield from _nodes(part)


def _separable(node: pl.Expr) -> bool:
    import polars as pl

    try:
        return node.meta.is_row_separable()
    except pl.exceptions.ColumnNotFoundError:  # what works inside a list (list.eval) cannot be judged
        return False


def _same_one_by_one(expression: pl.Expr, inputs: Mapping[str, Field]) -> bool:
    """Rows that differ in every column give the same together and each alone; errors are the data's own."""
    import polars as pl

    rows = pl.DataFrame({name: pl.Series(name, _samples(field), field.polars) for name, field in inputs.items()})
    try:
        together = rows.select(expression.alias("made"))
        alone = pl.concat([rows[place : place + 1].select(expression.alias("made")) for place in range(rows.height)])
    except (pl.exceptions.ComputeError, pl.exceptions.InvalidOperationError):  # a text that is no number, say
        return True
    return together.equals(alone)


def _samples(field: Field) -> list[Any]:
    """Four values of the type, the last one missing."""
    kinds: dict[TypeName, list[Any]] = {
        "Bool": [True, False, True],
        "Int64": [1, 7, 40],
        "Float64": [0.5, 20.0, 300.0],
        "String": ["1", "b", "2013-01-01"],
        "UnixTimestamp": [datetime(2013, 1, day, tzinfo=UTC) for day in (1, 2, 4)],
        "Float64Array": [[float(place + row) for place in range(field.size or 0)] for row in range(3)],
    }
    return [*kinds[field.dtype], None]


@dataclass(frozen=True)
class Transform:
    """Some features of one on-demand view: `inputs` by type, and each feature's serialised expression (base64)."""

    view: str
    inputs: Mapping[str, TypeName]
    features: Mapping[str, str]

    @classmethod
    def of(cls, selection: ComputedSelection) -> Self:
        view = selection.view
        expressions = view.expressions()
        return cls(
            view.id,
            {name: field.dtype for name, field in view.input_fields.items()},
            {name: serialised(expressions[name]) for name in selection.features},
        )

    def columns(self, known: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Each feature's values for rows of inputs by name, in their order; a missing input is null."""
        import polars as pl

        types = {name: Field(dtype).polars for name, dtype in self.inputs.items()}
        given = {name: series_of(name, [row.get(name) for row in known], dtype) for name, dtype in types.items()}
        return pl.DataFrame(given).select(self.expressions).to_dict(as_series=False)

    @cached_property
    def expressions(self) -> list[pl.Expr]:
        """The features, each under its own name, over columns named as the inputs."""
        return [deserialised(name, text) for name, text in self.features.items()]


def serialised(expression: pl.Expr) -> str:
    """The expression as a document holds it: base64 of Polars' own form."""
    return b64encode(expression.meta.serialize()).decode()


def deserialised(feature: str, text: str) -> pl.Expr:
    """The expression that `serialised` gave; one that would run Python is refused before anything of it is read."""
    import polars as pl

    return pl.Expr.deserialize(BytesIO(form_of(feature, text)))


def form_of(feature: str, text: str) -> bytes:
    """Polars' own form of an expression, unread. Raises NotRowByRowError for one that would run Python."""
    form = b64decode(text, validate=True)
    if PYTHON in form:
        raise NotRowByRowError.of(feature, "calls a Python function")
    return form


def series_of(name: str, values: list[Any], dtype: pl.DataType, *, strict: bool = True) -> pl.Series:
    """Values as requests and the online store give them: times may be ISO text; unless `strict`, misfits are null."""
    import polars as pl

    if dtype.is_temporal():
        values = [time_of(value) if isinstance(value, str) else value for value in values]
    return pl.Series(name, values, dtype, strict=strict)


def time_of(text: str) -> datetime:
    """ISO-8601 text as a time in UTC, which it is in where it names no zone. ValueError or OverflowError for others.

    Each by itself: Polars would read a whole column by the form of its first value.
    """
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
