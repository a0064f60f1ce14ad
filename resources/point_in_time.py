"""The point-in-time join: for each row of a spine, what each view showed at that row's moment.

A reader at time t sees, of the rows with its keys and `t - ttl <= event time <= t` (both ends
included, as in Feast), the one with the latest event time; of equal event times the one created last; of
equals in both the one that comes last in the view. The rule that must never break: a later event
never changes an earlier row.

One output row per spine row, in the spine's order, its columns untouched. A null key or time matches
nothing. Times without a zone are UTC; times are compared in microseconds.

Used at run time only: Polars is imported at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Self

import polars as pl

TIME = pl.Datetime("us", "UTC")
BEFORE_EVERY_EVENT = -(2**62)  # microseconds
BEFORE_ALL = datetime.min.replace(tzinfo=UTC)
# Working columns: a spine row's moment; a view row's event, its creation, when it was first shown, its number.
AT, EVENT, CREATED, SHOWN, RANK, SEEN = (
    f"__pit_{name}" for name in ("at", "event", "created", "shown", "rank", "seen")
)


class ColumnClashError(ValueError):
    """Two columns of the result would have one name."""

    @classmethod
    def of(cls, clashing: Sequence[str], spine: Sequence[str]) -> Self:
        return cls(
            f"The joined table would have several columns named {', '.join(clashing)} (the spine has: "
            f"{', '.join(spine)}). Give the views' features other output names."
        )


class KeyTypeError(TypeError):
    """A key of a view and the spine's column it is matched with cannot be compared."""

    @classmethod
    def of(cls, key: str, view_type: object, column: str, spine_type: object) -> Self:
        return cls(
            f"The view's key {key!r} is {view_type} and the spine's column {column!r} is {spine_type} "
            "(comparable: equal types, any two integer types, texts and categories). Cast one of them."
        )


class MissingColumnError(LookupError):
    """A table lacks a column that the join reads."""

    @classmethod
    def of(cls, table: str, missing: Sequence[str], held: Sequence[str]) -> Self:
        return cls(
            f"{table[0].upper()}{table[1:]} has no column {', '.join(missing)} (it has: {', '.join(held) or 'none'}). "
            "Add it, or correct the name where it is asked for."
        )


class TimeTypeError(TypeError):
    """A column that should tell the time does not."""

    @classmethod
    def of(cls, column: str, given: object) -> Self:
        return cls(f"Column {column!r} is {given} (needed: Datetime or Date). Parse it into a time.")


@dataclass(frozen=True)
class ViewFrame:
    """A view's history and how it is joined.

    `keys` maps the view's key columns to the spine's columns (none: the view holds for everyone);
    `features` maps the view's columns to their output names; `matched_at` names an output column for
    the event time of the matched row; `name` is what errors call it.
    """

    frame: pl.LazyFrame
    keys: Mapping[str, str]
    features: Mapping[str, str]
    ttl: timedelta | None = None
    event_timestamp: str = "event_timestamp"
    created_timestamp: str | None = None
    matched_at: str | None = None
    name: str = "a view"

    @property
    def needed(self) -> list[str]:
        """The columns that the join reads, each once."""
        times = [self.event_timestamp, *([self.created_timestamp] if self.created_timestamp else [])]
        return list(dict.fromkeys([*self.keys, *self.features, *times]))

    @property
    def outputs(self) -> list[str]:
        return [*self.features.values(), *([self.matched_at] if self.matched_at else [])]


def point_in_time_join(
    spine: pl.LazyFrame, views: Sequence[ViewFrame], *, event_timestamp: str = "event_timestamp", as_known: bool = False
) -> pl.LazyFrame:
    """The spine with each view's features as of `event_timestamp`; null where a view showed nothing.

    `as_known` also demands `created <= t` of views with a created timestamp: what was corrected later
    is seen uncorrected. Raises ColumnClashError, MissingColumnError, KeyTypeError, TimeTypeError.
    """
    schema = spine.collect_schema()
    check_outputs(schema.names(), views)
    _check_columns(schema.names(), views, event_timestamp)
    # Among null times Polars picks the first of equal events, not the last, where the view has no keys.
    at = utc(event_timestamp, schema).fill_null(pl.lit(BEFORE_EVERY_EVENT).cast(TIME)).alias(AT)
    histories = [_History.of(view, schema, as_known) for view in views]
    result = {**schema, **{name: dtype for history in histories for name, dtype in history.outputs().items()}}
    return spine.map_batches(
        lambda rows: _with_features(rows, at, histories),
        schema=pl.Schema(result),
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
    )


def utc(column: str, schema: pl.Schema) -> pl.Expr:
    """The column as UTC microseconds; a time without a zone is UTC."""
    dtype = schema[column]
    if dtype == pl.Date:
        return pl.col(column).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if not isinstance(dtype, pl.Datetime):
        raise TimeTypeError.of(column, dtype)
    moment = pl.col(column).dt.cast_time_unit("us")
    return moment.dt.convert_time_zone("UTC") if dtype.time_zone else moment.dt.replace_time_zone("UTC")


def between(column: str, schema: pl.Schema, first: int | None, last: int | None) -> pl.Expr:
    """Whether a time, in whole microseconds, is from `first` to `last`, both included (microseconds; None: no limit).

    Said in the column's own unit, of which files know the limits: those that have no such row are not read.
    """
    dtype = schema[column]
    if dtype == pl.Date:
        unit, width = 86_400_000_000_000, 32
    elif isinstance(dtype, pl.Datetime):
        unit, width = {"ns": 1, "us": 1_000, "ms": 1_000_000}[dtype.time_unit], 64
    else:
        raise TimeTypeError.of(column, dtype)
    inside = pl.col(column).is_not_null()
    if first is not None:
        inside &= pl.col(column) >= _literal(-(-first * 1_000 // unit), width, dtype)
    return inside if last is None else inside & (pl.col(column) <= _literal((last * 1_000 + 999) // unit, width, dtype))


def _literal(value: int, width: int, dtype: pl.DataType) -> pl.Expr:
    """The number as a time of the column's type; beyond its range, the end of the range."""
    limit = 2 ** (width - 1) - 1
    return pl.lit(min(max(value, -limit), limit), dtype=pl.Int32 if width == 32 else pl.Int64).cast(dtype)


def check_outputs(spine: Sequence[str], views: Sequence[ViewFrame]) -> None:
    """Raises ColumnClashError."""
    names = Counter([*spine, *(name for view in views for name in view.outputs)])
    if clashing := [name for name, times in names.items() if times > 1]:
        raise ColumnClashError.of(clashing, spine)


def _check_columns(spine: Sequence[str], views: Sequence[ViewFrame], event_timestamp: str) -> None:
    asked = [event_timestamp, *(column for view in views for column in view.keys.values())]
    if missing := [column for column in dict.fromkeys(asked) if column not in spine]:
        raise MissingColumnError.of("the spine", missing, spine)
    for view in views:
        held = view.frame.collect_schema().names()
        if missing := [column for column in view.needed if column not in held]:
            raise MissingColumnError.of(view.name, missing, held)


def _with_features(spine: pl.DataFrame, at: pl.Expr, histories: Sequence[_History]) -> pl.DataFrame:
    """The spine's own columns as they are; only its times and keys are put in order, and only row numbers back."""
    moments = spine.select(at).to_series()
    order = None if moments.is_sorted() else moments.arg_sort()
    place = None if order is None else order.arg_sort()
    for history in histories:
        asked = spine.select(moments, *history.asked())
        table = history.rows.collect()
        seen = history.seen(table, asked if order is None else asked[order])
        spine = spine.hstack(history.features(table, seen if place is None else seen.gather(place)))
    return spine


@dataclass(frozen=True)
class _History:
    """A view's rows as the join reads them: event and creation in UTC, keys in comparable types, outputs by name."""

    view: ViewFrame
    rows: pl.LazyFrame
    keys: Mapping[str, tuple[str, pl.DataType]]
    as_known: bool

    @classmethod
    def of(cls, view: ViewFrame, spine: pl.Schema, as_known: bool) -> Self:
        held = view.frame.collect_schema()
        keys = {
            f"__pit_key_{key}": (column, _key_type(key, held[key], column, spine[column]))
            for key, column in view.keys.items()
        }
        rows = view.frame.select(
            utc(view.event_timestamp, held).alias(EVENT),
            *([utc(view.created_timestamp, held).alias(CREATED)] if view.created_timestamp else []),
            *(pl.col(key).cast(keys[f"__pit_key_{key}"][1]).alias(f"__pit_key_{key}") for key in view.keys),
            *(pl.col(feature).alias(output) for feature, output in view.features.items()),
        )
        return cls(view, rows.drop_nulls([EVENT, *keys]), keys, as_known)

    def outputs(self) -> dict[str, pl.DataType]:
        held = self.view.frame.collect_schema()
        dated: dict[str, pl.DataType] = {self.view.matched_at: TIME} if self.view.matched_at else {}
        return {output: held[feature] for feature, output in self.view.features.items()} | dated

    def asked(self) -> list[pl.Expr]:
        """The spine's keys; one beyond the range of the view's integers is null: no key there equals it."""
        return [pl.col(column).cast(dtype, strict=False).alias(name) for name, (column, dtype) in self.keys.items()]

    def seen(self, table: pl.DataFrame, moments: pl.DataFrame) -> pl.Series:
        """For each moment, in order of time, the number of the row that it sees (null: none)."""
        times = [EVENT, *([CREATED] if self.view.created_timestamp else [])]
        rows = table.lazy().select(*times, *self.keys).with_row_index(SEEN)
        joined = moments.lazy().join_asof(
            _shown(rows, self.view, list(self.keys), self.as_known),
            left_on=AT,
            right_on=SHOWN,
            by=list(self.keys) or None,
            tolerance=None if self.as_known else self.view.ttl,  # what is shown late may have expired already
            coalesce=False,
            check_sortedness=False,  # both sides were just put in order; Polars cannot see it within groups
        )
        if self.view.ttl and self.as_known:
            valid = pl.col(EVENT) >= pl.col(AT) - self.view.ttl
            joined = joined.with_columns(pl.when(valid).then(SEEN).alias(SEEN))
        return joined.select(SEEN).collect().to_series()

    def features(self, table: pl.DataFrame, seen: pl.Series) -> list[pl.Series]:
        """The view's outputs in the rows of these numbers."""
        values: list[str | pl.Expr] = list(self.view.features.values())
        if self.view.matched_at:
            values.append(pl.col(EVENT).alias(self.view.matched_at))
        return table.select(values).select(pl.all().gather(seen)).get_columns() if values else []


def _in_order(frame: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """Sorted by `column`, equals staying as they lie; looking whether it is costs a tenth of sorting."""
    return frame.map_batches(lambda rows: rows if rows[column].is_sorted() else rows.sort(column, maintain_order=True))


def _shown(rows: pl.LazyFrame, view: ViewFrame, keys: Sequence[str], as_known: bool) -> pl.LazyFrame:
    """The rows in the order of SHOWN, such that the last one shown by a time is the one to see at that time."""
    if not view.created_timestamp:
        return _in_order(rows, EVENT).with_columns(pl.col(EVENT).alias(SHOWN))
    ordered = rows.sort(EVENT, CREATED, maintain_order=True)
    if not as_known:
        return ordered.with_columns(pl.col(EVENT).alias(SHOWN))
    newest_so_far = pl.col(RANK).cum_max()
    return (
        ordered.drop_nulls(CREATED)
        .with_row_index(RANK)
        .with_columns(pl.max_horizontal(EVENT, CREATED).alias(SHOWN))
        .sort(SHOWN, RANK)
        # A row shown after a newer event of its key was is never seen.
        .filter(pl.col(RANK) == (newest_so_far.over(keys) if keys else newest_so_far))
        .drop(RANK)
    )


def _key_type(key: str, view_type: pl.DataType, column: str, spine_type: pl.DataType) -> pl.DataType:
    """The type in which both sides of a key are compared."""
    texts = (pl.String, pl.Categorical, pl.Enum)
    if view_type in texts and spine_type in (*texts, pl.Null):
        return pl.String()
    if view_type == pl.Null:
        return spine_type
    if spine_type in (view_type, pl.Null) or (view_type.is_integer() and spine_type.is_integer()):
        return view_type
    raise KeyTypeError.of(key, view_type, column, spine_type)


def naive_join(
    spine: pl.DataFrame, views: Sequence[ViewFrame], *, event_timestamp: str = "event_timestamp", as_known: bool = False
) -> pl.DataFrame:
    """The same table as `point_in_time_join`, row by row in plain Python: the proof, for samples and tests."""
    moments = [_python_utc(moment) for moment in spine[event_timestamp]]
    return spine.hstack([column for view in views for column in _naive_columns(spine, moments, view, as_known)])


def _naive_columns(
    spine: pl.DataFrame, moments: Sequence[datetime | None], view: ViewFrame, as_known: bool
) -> list[pl.Series]:
    history = _histories(spine, view)
    keys = spine.select(view.keys.values()).rows() if view.keys else [()] * spine.height
    seen = [_newest(history.get(key, []), at, view, as_known) for key, at in zip(keys, moments, strict=True)]
    schema = view.frame.collect_schema()
    columns = [
        pl.Series(output, [row and row[feature] for row in seen], dtype=schema[feature], strict=False)
        for feature, output in view.features.items()
    ]
    if view.matched_at:
        times = [row and _python_utc(row[view.event_timestamp]) for row in seen]
        columns.append(pl.Series(view.matched_at, times, dtype=TIME))
    return columns


def _histories(spine: pl.DataFrame, view: ViewFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The view's rows by key, in the view's order, of keys that the spine has."""
    rows = view.frame
    for key, column in view.keys.items():
        rows = rows.filter(pl.col(key).is_in(spine[column].unique().to_list()))
    histories: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows.collect().iter_rows(named=True):
        values = tuple(row[name] for name in view.keys)
        if None not in values:
            histories[values].append(row)
    return histories


def _newest(
    rows: Iterable[dict[str, Any]], at: datetime | None, view: ViewFrame, as_known: bool
) -> dict[str, Any] | None:
    """The row to see at `at`, of the rows of one key."""
    best, best_rank = None, None
    for row in rows:
        event = _python_utc(row[view.event_timestamp])
        created = _python_utc(row[view.created_timestamp]) if view.created_timestamp else None
        if at is None or event is None or event > at or (view.ttl and event < at - view.ttl):
            continue
        if as_known and view.created_timestamp and (created is None or created > at):
            continue
        rank = (event, created or BEFORE_ALL)
        if best_rank is None or rank >= best_rank:
            best, best_rank = row, rank
    return best


def _python_utc(moment: datetime | date | None) -> datetime | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime):
        moment = datetime.combine(moment, time())
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
