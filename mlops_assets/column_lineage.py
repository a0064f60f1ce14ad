"""Column lineage: which columns of which tables a column of a computed table rests on.

Read from Polars, never guessed from names. The table's function gets inputs that write down which of their columns
the engine asks for when one output column is computed. So a column that decides which rows there are (a filter, a
group or join key, a sort before `head`) is an origin of every output column, and one that only another output needs
is an origin of that one alone. The rule that must never break: what is not named cannot change the column. It may
name too much where the engine cannot look inside (`map_batches`) or only counts rows. What the function
collects itself, while it runs, counts for all outputs.

The run that publishes a table shows it to Dagster; `mlops features impact` follows it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.catalog import Catalog, Table, asset_key
from mlops_assets.claims import columns_of
from mlops_assets.cold_start import stood_for
from mlops_assets.declarations import Source

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

Frames = Mapping[str, "pl.LazyFrame"]


class UnknownLineageError(ValueError):
    """A table's function could not be followed."""

    @classmethod
    def of(cls, title: str, problem: Exception) -> Self:
        return cls(
            f"{title}: its columns cannot be traced, since its function raised {type(problem).__name__} on tables "
            f"without rows ({str(problem).splitlines()[0] if str(problem) else 'no message'}). "
            "Let it take a day without rows."
        )

    @classmethod
    def engine(cls, title: str, engine: str) -> Self:
        return cls(f"{title}: its columns cannot be traced, since its function is written on {engine}, not on Polars.")


@dataclass(frozen=True, order=True)
class Column:
    """A column of a declared table; `table` is the table's id."""

    table: str
    name: str

    def __str__(self) -> str:
        return f"{self.table}:{self.name}"


@dataclass
class _Watched:
    """An input that writes down which of its columns are asked for; `rows` are handed out while the function runs."""

    table: Table
    rows: pl.LazyFrame | None
    asked: set[str] = field(default_factory=set)

    def frame(self) -> pl.LazyFrame:
        from polars.io.plugins import register_io_source

        return register_io_source(self._read, schema=self._schema)

    def taken(self) -> set[Column]:
        """What was asked for since this was last called."""
        columns, self.asked = {Column(self.table.id, name) for name in self.asked}, set()
        return columns

    @property
    def _schema(self) -> dict[str, pl.DataType]:
        return {name: declared.polars for name, declared in columns_of(self.table).items()}

    def _read(
        self, columns: list[str] | None, predicate: pl.Expr | None, limit: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        import polars as pl

        wanted = list(self._schema) if columns is None else columns
        self.asked.update(wanted, predicate.meta.root_names() if predicate is not None else ())
        rows = pl.LazyFrame(schema=self._schema) if self.rows is None else self.rows
        rows = rows if predicate is None else rows.filter(predicate)
        rows = rows if limit is None else rows.head(limit)
        yield rows.select(wanted).collect()


def column_lineage(table: Table, catalog: Catalog, frames: Frames | None = None) -> dict[str, frozenset[Column]]:
    """The origins of each published column; none for a source. Raises UnknownLineageError.

    No row is read. Only a function that collects its inputs while it runs, and cannot do so without rows, is given
    `frames`, rows by parameter.
    """
    if isinstance(table, Source):
        return {}
    if table.engine != "polars":
        raise UnknownLineageError.engine(table.title, table.engine)
    for view in catalog.views:
        if view.stand_in is table:  # it collects all of the view, which Polars would name as its origin
            return {
                name: frozenset(Column(view.id, origin) for origin in stood_for(name, view))
                for name in columns_of(table)
            }
    try:
        return _traced(table, catalog, {})
    except UnknownLineageError:
        if not frames:
            raise
        return _traced(table, catalog, frames)


def told(table: Table, catalog: Catalog, frames: Frames) -> dict[str, Any]:
    """The lineage as metadata of the table's asset, and as a table, which Dagster's open page shows; or why not."""
    try:
        lineage = column_lineage(table, catalog, frames)
    except UnknownLineageError as problem:
        return {"column_lineage_unknown": str(problem)}
    if not lineage:
        return {}
    return {"dagster/column_lineage": as_dagster(lineage, catalog), "columns_come_from": _as_table(lineage)}


def _as_table(lineage: Mapping[str, Iterable[Column]]) -> dg.MarkdownMetadataValue:
    from mlops_assets.links import spec

    rows = [(name, ", ".join(map(str, sorted(columns)))) for name, columns in lineage.items()]
    return spec.table(["column", "comes from"], rows)


def as_dagster(lineage: Mapping[str, Iterable[Column]], catalog: Catalog) -> dg.TableColumnLineage:
    import dagster as dg

    deps = {
        name: [dg.TableColumnDep(asset_key(catalog.tables[item.table]), item.name) for item in sorted(columns)]
        for name, columns in lineage.items()
    }
    return dg.TableColumnLineage(deps)


def _traced(table: Table, catalog: Catalog, frames: Frames) -> dict[str, frozenset[Column]]:
    import polars as pl

    watched = [_Watched(item, frames.get(name)) for name, item in catalog.inputs(table)]
    try:
        with warnings.catch_warnings():  # the run that computes the rows has warned already
            warnings.simplefilter("ignore")
            return _by_column(table, watched)
    # The function is a team's own: these are what Python and Polars raise where code meets a table without rows.
    except (pl.exceptions.PolarsError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        raise UnknownLineageError.of(table.title, problem) from problem


def _by_column(table: Table, watched: Sequence[_Watched]) -> dict[str, frozenset[Column]]:
    result = table.compute(*(item.frame() for item in watched)).lazy()
    always = _taken(watched)
    for item in watched:
        item.rows = None
    return {name: always | _needed(result.select(name), watched) for name in columns_of(table)}


def _needed(column: pl.LazyFrame, watched: Iterable[_Watched]) -> frozenset[Column]:
    column.collect()
    return _taken(watched)


def _taken(watched: Iterable[_Watched]) -> frozenset[Column]:
    return frozenset(column for item in watched for column in item.taken())
