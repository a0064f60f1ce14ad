"""The point-in-time join of `resources.point_in_time` on Spark: the same rows, for tables that one machine cannot hold.

Spine and view are put into one table, ordered by key and time, and each row of the spine takes the best view row seen
so far. So the cost is a sort, whatever the number of rows that a key has. A key with more rows than `slice_rows`, or
a view that holds for everyone and has no key, would be the work of one machine alone; it is cut into slices of time
that are worked on side by side, each told beforehand what the slices before it had seen last. Nothing is collected.

A row's rank is its event time, then when it was created, then its place in the view: the column `ORDER`, where the
view's frame has it, since rows have no places in Spark. What is null, renamed, typed, within ttl, is as in Polars; the
rows come in any order. The session's time zone is UTC (`resources.spark.session`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce
from typing import TYPE_CHECKING, Any, Self

from resources.point_in_time import (
    KeyTypeError,
    MissingColumnError,
    TimeTypeError,
    ViewFrame,
    check_outputs,
)

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

ORDER = "__pit_order"
AT, RANK, ROW, SIDE, SLICE, LABEL = (f"__pit_{name}" for name in ("at", "rank", "row", "side", "slice", "label"))
VIEW, SPINE = 0, 1  # of equal times the view's rows come first: a row is seen at its own moment
SLICE_ROWS = 500_000
INTEGERS = ("tinyint", "smallint", "int", "bigint")


def point_in_time_join(
    spine: DataFrame,
    views: Sequence[ViewFrame],
    *,
    event_timestamp: str = "event_timestamp",
    as_known: bool = False,
    slice_rows: int = SLICE_ROWS,
) -> DataFrame:
    """The spine with each view's features as of `event_timestamp`; the views' frames are Spark's.

    Raises ColumnClashError, MissingColumnError, KeyTypeError, TimeTypeError, as the join in Polars does.
    """
    check_outputs(spine.columns, views)
    joined = spine
    for view in views:
        history = _History.of(view, spine, event_timestamp, as_known)
        joined = history.joined(joined, spine, slice_rows)
    return joined


def naive_join(
    sample: DataFrame, views: Sequence[ViewFrame], *, event_timestamp: str = "event_timestamp", as_known: bool = False
) -> DataFrame:
    """The same table for a few rows, each compared with every row of its key: the proof of the join above."""
    from pyspark.sql import functions as f

    check_outputs(sample.columns, views)
    numbered = sample.withColumn(LABEL, f.monotonically_increasing_id()).localCheckpoint()
    joined = numbered
    for view in views:
        history = _History.of(view, sample, event_timestamp, as_known)
        joined = joined.join(history.compared(numbered), LABEL, "left")
        kept = [quoted(name) for name in joined.columns if name != ROW]
        joined = joined.select(*kept, *history.outputs(f.lit(True)))
    return joined.drop(LABEL)


@dataclass(frozen=True)
class _History:
    """A view's rows as the join reads them (AT: when a row is first shown), and what it reads of the spine."""

    view: ViewFrame
    rows: DataFrame
    at: Column
    keys: dict[str, Column]

    @classmethod
    def of(cls, view: ViewFrame, spine: DataFrame, event_timestamp: str, as_known: bool) -> Self:
        from pyspark.sql import functions as f

        held: DataFrame = view.frame
        _require("the spine", [event_timestamp, *view.keys.values()], spine)
        _require(view.name, view.needed, held)
        types = {f"__pit_key_{key}": _key_type(view, key, spine) for key in view.keys}
        event, order = moment(view.event_timestamp, held), [f.col(ORDER)] if ORDER in held.columns else []
        created = [moment(view.created_timestamp, held)] if view.created_timestamp else []
        features = [f.col(quoted(name)).alias(output) for name, output in view.features.items()]
        late = as_known and bool(created)
        rows = held.select(
            *(f.col(quoted(key)).cast(types[f"__pit_key_{key}"]).alias(f"__pit_key_{key}") for key in view.keys),
            f.greatest(event, *created).alias(AT) if late else event.alias(AT),
            f.struct(event.alias("event"), *(part.alias("created") for part in created), *order).alias(RANK),
            f.struct(*features, event.alias("__pit_event")).alias(ROW),
        )
        whole = reduce(lambda one, other: one & other, [f.col(name).isNotNull() for name in (*types, f"{RANK}.event")])
        if late:
            whole &= f.col(f"{RANK}.created").isNotNull()
        asked = {
            f"__pit_key_{key}": f.col(quoted(column)).cast(types[f"__pit_key_{key}"])
            for key, column in view.keys.items()
        }
        return cls(view, rows.filter(whole), moment(event_timestamp, spine), asked)

    def joined(self, joined: DataFrame, spine: DataFrame, slice_rows: int) -> DataFrame:
        """`joined`, which has the spine's rows, with the view's outputs."""
        from pyspark.sql import Window
        from pyspark.sql import functions as f

        asked = self._asked(joined, *joined.columns)
        sliced = self._slices(spine, slice_rows)
        both = sliced(asked).unionByName(self._known(sliced, spine), allowMissingColumns=True)
        by = [*self.keys, *([SLICE] if SLICE in both.columns else [])] or [f.lit(0)]
        so_far = Window.partitionBy(*by).orderBy(AT, SIDE).rowsBetween(Window.unboundedPreceding, Window.currentRow)
        seen = both.withColumn(ROW, f.max_by(ROW, RANK).over(so_far)).filter(f.col(SIDE) == SPINE)
        return seen.select(*map(quoted, joined.columns), *self.outputs(self._valid(f.col(AT))))

    def compared(self, numbered: DataFrame) -> DataFrame:
        """By LABEL of the few rows: the best of all rows that each may see."""
        from pyspark.sql import functions as f

        moments = f.broadcast(self._asked(numbered, LABEL)).alias("moments")
        history = self.rows.alias("history")
        same = [f.col(f"moments.{key}") == f.col(f"history.{key}") for key in self.keys]
        shown = f.col(f"history.{AT}") <= f.col(f"moments.{AT}")
        together = history.join(moments, reduce(lambda one, other: one & other, [shown, *same]))
        return together.filter(self._valid(f.col(f"moments.{AT}"))).groupBy(LABEL).agg(f.max_by(ROW, RANK).alias(ROW))

    def outputs(self, valid: Column) -> list[Column]:
        from pyspark.sql import functions as f

        names = {output: output for output in self.view.features.values()}
        if self.view.matched_at:
            names[self.view.matched_at] = "__pit_event"
        return [f.when(valid, f.col(ROW)[held]).alias(output) for output, held in names.items()]

    def _asked(self, rows: DataFrame, *kept: str) -> DataFrame:
        from pyspark.sql import functions as f

        keys = [column.alias(name) for name, column in self.keys.items()]
        return rows.select(*map(quoted, kept), *keys, self.at.alias(AT), f.lit(SPINE).alias(SIDE))

    def _valid(self, at: Column) -> Column:
        """Whether the row that was seen was within its time to live at `at`."""
        from pyspark.sql import functions as f

        if self.view.ttl is None:
            return f.lit(True)
        age = f.unix_micros(at) - f.unix_micros(f.col(ROW)["__pit_event"])
        return age <= self.view.ttl // timedelta(microseconds=1)

    def _known(self, sliced: Any, spine: DataFrame) -> DataFrame:
        """The view's rows; of each slice that is asked about, before all others, the best of the slices before it."""
        from pyspark.sql import Window
        from pyspark.sql import functions as f

        rows = sliced(self.rows.withColumn(SIDE, f.lit(VIEW)))
        if SLICE not in rows.columns:
            return rows
        best = [f.max_by(ROW, RANK).alias(ROW), f.max(RANK).alias(RANK)]
        both = sliced(self._asked(spine)).unionByName(rows, allowMissingColumns=True)
        by_slice = both.groupBy(*self.keys, SLICE).agg(*best, f.max(SIDE).alias(SIDE))
        before = Window.partitionBy(*self.keys or [f.lit(0)]).orderBy(SLICE)
        before = before.rowsBetween(Window.unboundedPreceding, -1)
        carried = by_slice.select(
            *self.keys,
            SLICE,
            SIDE,
            f.max_by(ROW, RANK).over(before).alias(ROW),
            f.max(RANK).over(before).alias(RANK),
            f.lit(None).cast("timestamp").alias(AT),
        )
        asked_about = carried.filter((f.col(SIDE) == SPINE) & f.col(RANK).isNotNull())
        return rows.unionByName(asked_about.withColumn(SIDE, f.lit(VIEW)))

    def _slices(self, spine: DataFrame, slice_rows: int) -> Any:
        """Puts rows into slices of time, so many that the key with the most rows has about `slice_rows` in each."""
        from pyspark.sql import functions as f

        both = self._asked(spine).select(*self.keys, AT).unionByName(self.rows.select(*self.keys, AT))
        time = f.unix_micros(AT)
        told = [f.count("*").alias("rows"), f.min(time).alias("first"), f.max(time).alias("last")]
        by_key = both.groupBy(*self.keys).agg(*told)
        most, first, last = by_key.agg(f.max("rows"), f.min("first"), f.max("last")).first()
        count = -(-(most or 0) // slice_rows)
        if count <= 1 or first == last:
            return lambda rows: rows
        width = -(-(last - first + 1) // count)
        number = f.floor((time - f.lit(first)) / f.lit(width)).alias(SLICE)
        return lambda rows: rows.withColumn(SLICE, number)


def moment(column: str, frame: DataFrame) -> Column:
    """The column as a moment; a time without a zone is UTC."""
    from pyspark.sql import functions as f

    given = dict(frame.dtypes)[column]
    if given not in ("timestamp", "timestamp_ntz", "date"):
        raise TimeTypeError.of(column, given)
    return f.col(quoted(column)).cast("timestamp")


def quoted(column: str) -> str:
    """The name as Spark takes it, whatever characters it has."""
    return f"`{column.replace('`', '``')}`"


def _require(table: str, columns: Sequence[str], frame: DataFrame) -> None:
    if missing := [name for name in dict.fromkeys(columns) if name not in frame.columns]:
        raise MissingColumnError.of(table, missing, frame.columns)


def _key_type(view: ViewFrame, key: str, spine: DataFrame) -> str:
    """The type in which both sides of a key are compared."""
    column = view.keys[key]
    held: DataFrame = view.frame
    theirs, ours = dict(held.dtypes)[key], dict(spine.dtypes)[column]
    if theirs in INTEGERS and ours in INTEGERS:
        return "bigint"
    if "void" in (theirs, ours) or theirs == ours:
        return ours if theirs == "void" else theirs
    raise KeyTypeError.of(key, theirs, column, ours)
