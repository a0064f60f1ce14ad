"""What a published table promises, as claims that can fail: its schema, its key, its bounds.

`conform` refuses a frame that is not the declared table at all (a column is missing, a type cannot be
read, a time has no zone). The claims judge the rows; they become asset checks, and the blocking ones are
judged before anything is published, so that bad rows never replace good ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, Labels, Source
from mlops_assets.fields import Field

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = 3


class SchemaError(ValueError):
    """A frame is not the table it was declared to be."""

    @classmethod
    def of(cls, title: str, problem: str, fix: str) -> Self:
        return cls(f"{title}: {problem}. {fix} Nothing was published.")


@dataclass(frozen=True)
class Claim:
    """One claim about some rows: did it hold, and what says so."""

    name: str
    passed: bool
    reason: str
    blocking: bool = True
    numbers: Mapping[str, Any] = field(default_factory=dict)


def columns_of(table: Source | FeatureView | Labels) -> Mapping[str, Field]:
    return table.schema if isinstance(table, Source) else table.columns


def key_of(table: Source | FeatureView | Labels) -> list[str]:
    """The columns that are unique together."""
    if isinstance(table, FeatureView):
        return [*table.join_keys, EVENT_TIMESTAMP]
    return [table.key] if isinstance(table, Labels) else list(table.key)


def time_of(table: Source | FeatureView | Labels) -> str | None:
    """The column that places a row in a partition."""
    return table.event_timestamp if isinstance(table, Source) else EVENT_TIMESTAMP


def conform(frame: pl.LazyFrame, table: Source | FeatureView | Labels) -> pl.DataFrame:
    """The frame with exactly the declared columns and types, sorted by time and key; or a `SchemaError`."""
    import polars as pl

    columns, given = columns_of(table), frame.collect_schema()
    if missing := [name for name in columns if name not in given]:
        raise SchemaError.of(
            table.title,
            f"column {missing} is missing (it has: {', '.join(given.names())})",
            "Return it or undeclare it.",
        )
    for name, declared in columns.items():
        _refuse_unreadable(table.title, name, declared, given[name])
    casted = frame.select(pl.col(name).cast(declared.polars) for name, declared in columns.items())
    time = time_of(table)
    try:
        return casted.collect().sort([time, *key_of(table)] if time else key_of(table))
    except (pl.exceptions.InvalidOperationError, pl.exceptions.ComputeError) as error:
        raise SchemaError.of(
            table.title, f"a value does not fit its declared type: {error}", "Mend the source."
        ) from error


def _refuse_unreadable(title: str, name: str, declared: Field, given: pl.DataType) -> None:
    import polars as pl

    if isinstance(given, pl.Datetime) and given.time_zone is None:
        raise SchemaError.of(
            title,
            f"column {name!r} is a time without a zone",
            "Say which: .dt.replace_time_zone('UTC') or the local zone.",
        )
    wanted = declared.polars
    numeric = (given.is_numeric() or given == pl.Boolean()) and wanted.is_numeric()
    listed = isinstance(given, pl.Array) and isinstance(wanted, pl.List)
    if not (given == wanted or listed or numeric or given == pl.Null() or type(given) is type(wanted)):
        raise SchemaError.of(
            title, f"column {name!r} is {given}, declared as {declared.dtype}", "Cast it or declare its type."
        )


def claims(rows: pl.DataFrame, table: Source | FeatureView | Labels) -> list[Claim]:
    """Every claim about the rows of one publication (a partition or a range of them)."""
    columns = columns_of(table)
    return [
        unique_key(rows, key_of(table)),
        in_bounds(rows, columns),
        null_share(rows, columns),
        not_empty(rows, table),
    ]


CLAIM_NAMES = {"unique_key": True, "in_bounds": True, "null_share": True, "not_empty": False}


def unique_key(rows: pl.DataFrame, key: Sequence[str]) -> Claim:
    """No two rows share a key, and no part of a key is null."""
    import polars as pl

    nulls = rows.filter(pl.any_horizontal(pl.col(name).is_null() for name in key)).height
    doubled = rows.filter(rows.select(key).is_duplicated()).select(key).unique(maintain_order=True)
    examples = [list(map(str, row)) for row in doubled.head(EXAMPLES).rows()]
    return unique_key_of(key, doubled.height, examples, nulls)


def unique_key_of(key: Sequence[str], doubled: int, examples: Sequence[Sequence[str]], nulls: int) -> Claim:
    """The claim, counted: `doubled` keys that occur more than once, `nulls` rows with a null in the key."""
    return Claim(
        "unique_key",
        passed=not doubled and not nulls,
        reason=f"{doubled} keys {tuple(key)} occur more than once{f', e.g. {examples}' if examples else ''}; "
        f"{nulls} rows have a null in the key",
        numbers={"doubled_keys": doubled, "null_keys": nulls},
    )


def in_bounds(rows: pl.DataFrame, columns: Mapping[str, Field]) -> Claim:
    """Every number is finite and within its declared bounds; null is a missing value and judged elsewhere."""
    import polars as pl

    outside = {}
    for name, declared in columns.items():
        low, high = declared.minimum, declared.maximum
        if declared.dtype in ("Float64", "Int64"):
            found = rows.filter(out_of_bounds(pl.col(name), declared))[name]
        elif declared.dtype == "Float64Array":
            element = out_of_bounds(pl.element(), declared) | pl.element().is_null()
            sized = pl.col(name).list.len() == declared.size
            found = rows.filter(~sized | pl.col(name).list.eval(element).list.any())[name]
        else:
            continue
        if len(found):
            outside[name] = f"{len(found)} values outside [{low}, {high}], e.g. {found.head(EXAMPLES).to_list()}"
    return Claim(
        "in_bounds", not outside, "; ".join(f"{name}: {why}" for name, why in outside.items()) or "all within bounds"
    )


def out_of_bounds(value: pl.Expr, declared: Field) -> pl.Expr:
    """Is a number infinite, NaN, or beyond its bounds?"""
    import polars as pl

    bad = pl.lit(False) if declared.dtype == "Int64" else ~value.is_finite()
    bad = bad if declared.minimum is None else bad | (value < declared.minimum)
    return bad if declared.maximum is None else bad | (value > declared.maximum)


def null_share(rows: pl.DataFrame, columns: Mapping[str, Field]) -> Claim:
    """No column has a larger share of nulls than its declaration allows."""
    return null_share_of({name: rows[name].null_count() for name in columns}, rows.height, columns)


def null_share_of(nulls: Mapping[str, int], rows: int, columns: Mapping[str, Field]) -> Claim:
    """The claim, counted: the nulls of each column of so many rows."""
    shares = {name: count / max(rows, 1) for name, count in nulls.items()}
    over = {name: share for name, share in shares.items() if share > columns[name].max_null_share}
    return Claim(
        "null_share",
        not over,
        "; ".join(
            f"{name}: {share:.1%} null, at most {columns[name].max_null_share:.1%}" for name, share in over.items()
        )
        or "every column within its limit",
        numbers={f"null_share/{name}": round(share, 6) for name, share in shares.items() if share},
    )


def not_empty(rows: pl.DataFrame, table: Source | FeatureView | Labels) -> Claim:
    """A publication without rows is worth a look, but no reason to stop; of a sparse view it is neither."""
    return not_empty_of(rows.height, table)


def not_empty_of(rows: int, table: Source | FeatureView | Labels) -> Claim:
    sparse = isinstance(table, FeatureView) and table.sparse
    return Claim("not_empty", sparse or rows > 0, f"{table.title}: {rows} rows", blocking=False)
