"""What a published table promises (`mlops_assets.claims`), asked of a frame of Spark's: the cluster counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from mlops_assets.claims import (
    EXAMPLES,
    Claim,
    SchemaError,
    columns_of,
    key_of,
    not_empty_of,
    null_share_of,
    unique_key_of,
)
from mlops_assets.fields import Field
from resources.spark.point_in_time import quoted

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

    from mlops_assets.catalog import Table

TYPES = {
    "Bool": "boolean",
    "Int64": "bigint",
    "Float64": "double",
    "String": "string",
    "UnixTimestamp": "timestamp",
    "Float64Array": "array<double>",
}
NUMBERS = ("tinyint", "smallint", "int", "bigint", "float", "double", "boolean")


def conform(frame: DataFrame, table: Table) -> DataFrame:
    """The frame with exactly the declared columns and types; or a `SchemaError`."""
    from pyspark.sql import functions as f

    columns, given = columns_of(table), dict(frame.dtypes)
    if missing := [name for name in columns if name not in given]:
        raise SchemaError.of(
            table.title, f"column {missing} is missing (it has: {', '.join(given)})", "Return it or undeclare it."
        )
    for name, declared in columns.items():
        _refuse_unreadable(table.title, name, declared, given[name])
    return frame.select(*(f.col(quoted(name)).cast(TYPES[field.dtype]).alias(name) for name, field in columns.items()))


def _refuse_unreadable(title: str, name: str, declared: Field, given: str) -> None:
    if given == "timestamp_ntz":
        raise SchemaError.of(
            title, f"column {name!r} is a time without a zone", "Say which: to_utc_timestamp, or cast('timestamp')."
        )
    wanted = TYPES[declared.dtype]
    numeric = (given in NUMBERS or given.startswith("decimal")) and wanted in ("bigint", "double")
    listed = given.startswith("array<") and wanted.startswith("array<")
    if not (given in (wanted, "void") or numeric or listed):
        raise SchemaError.of(
            title, f"column {name!r} is {given}, declared as {declared.dtype}", "Cast it or declare its type."
        )


def claims(rows: DataFrame, table: Table) -> list[Claim]:
    """Every claim about the rows of one publication, as `mlops_assets.claims.claims` makes them."""
    from pyspark.sql import functions as f

    columns, key = columns_of(table), key_of(table)
    bad = {name: column for name, declared in columns.items() if (column := _bad(name, declared)) is not None}
    no_key = reduce(lambda one, other: one | other, [f.col(quoted(name)).isNull() for name in key])
    counted = rows.agg(
        f.count("*").alias("rows"),
        f.count_if(no_key).alias("no key"),
        *(f.count_if(f.col(quoted(name)).isNull()).alias(f"null {name}") for name in columns),
        *(f.count_if(column).alias(f"bad {name}") for name, column in bad.items()),
    ).first()
    told: dict[str, int] = counted.asDict() if counted else {}
    outside = {
        name: (told[f"bad {name}"], _examples(rows, name, column))
        for name, column in bad.items()
        if told[f"bad {name}"]
    }
    return [
        _unique_key(rows, key, told["no key"]),
        _in_bounds(outside, columns),
        null_share_of({name: told[f"null {name}"] for name in columns}, told["rows"], columns),
        not_empty_of(told["rows"], table),
    ]


def _unique_key(rows: DataFrame, key: Sequence[str], nulls: int) -> Claim:
    from pyspark.sql import functions as f

    doubled = rows.groupBy(*map(quoted, key)).count().filter(f.col("count") > 1)
    count = doubled.count()
    examples = [[str(value) for value in row[: len(key)]] for row in doubled.limit(EXAMPLES).collect()] if count else []
    return unique_key_of(key, count, examples, nulls)


def _in_bounds(outside: Mapping[str, tuple[int, list[Any]]], columns: Mapping[str, Field]) -> Claim:
    told = {
        name: f"{count} values outside [{columns[name].minimum}, {columns[name].maximum}], e.g. {examples}"
        for name, (count, examples) in outside.items()
    }
    reason = "; ".join(f"{name}: {why}" for name, why in told.items())
    return Claim("in_bounds", not told, reason or "all within bounds")


def _examples(rows: DataFrame, name: str, bad: Column) -> list[Any]:
    return [row[0] for row in rows.filter(bad).select(quoted(name)).limit(EXAMPLES).collect()]


def _bad(name: str, declared: Field) -> Column | None:
    """Whether a value is infinite, NaN, out of bounds, or an array with such an element or of another length."""
    from pyspark.sql import functions as f

    value = f.col(quoted(name))
    if declared.dtype in ("Float64", "Int64"):
        return _out_of_bounds(value, declared)
    if declared.dtype == "Float64Array":
        element = f.exists(value, lambda item: f.coalesce(_out_of_bounds(item, declared), f.lit(True)))
        return (f.size(value) != declared.size) | element
    return None


def _out_of_bounds(value: Column, declared: Field) -> Column:
    from pyspark.sql import functions as f

    limits = [value < declared.minimum] if declared.minimum is not None else []
    limits += [value > declared.maximum] if declared.maximum is not None else []
    if declared.dtype != "Int64":
        limits += [f.isnan(value), f.abs(value) == float("inf")]
    return reduce(lambda one, other: one | other, limits, value.isNull() & value.isNotNull())
