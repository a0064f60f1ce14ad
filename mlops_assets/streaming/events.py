"""Events as rows of their source: each one is judged alone, so that a bad one stops no other.

An event is a JSON object with the source's columns; a column that it leaves out is null, one that the source does
not declare is ignored. A time is ISO-8601 text with a zone. What the source's checks would refuse of a row
(a null key, a value out of bounds, a time outside its partitions) is refused here, with the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import NoneType
from typing import TYPE_CHECKING, Any

import dagster as dg
import orjson

from mlops_assets.claims import key_of
from mlops_assets.declarations import Source
from mlops_assets.fields import Field
from resources.streams import Message

if TYPE_CHECKING:
    import polars as pl

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
INT64 = range(-(2**63), 2**63)
MAX_FLOAT = sys.float_info.max
# The JSON types of good values, where that is all there is to see; the others are read one by one.
KINDS: Mapping[str, set[type]] = {
    "Bool": {bool, NoneType},
    "Int64": {int, NoneType},
    "Float64": {int, float, NoneType},
    "String": {str, NoneType},
}
Reader = Callable[[Any], Any]


class BadValueError(ValueError):
    """A value that is no value of its column."""


@dataclass(frozen=True)
class Refused:
    """An event that is no row, and why."""

    message: Message
    reason: str


class Judge:
    """Reads the events of one source."""

    def __init__(self, source: Source) -> None:
        required = {*key_of(source), time_column(source)}
        self.source = source
        self._columns = [
            Column(name, declared, name in required or declared.max_null_share == 0)
            for name, declared in source.schema.items()
        ]
        self._first, self._end = _bounds(source)

    def rows(self, messages: Sequence[Message]) -> tuple[pl.DataFrame, list[Refused]]:
        """The good events as rows of the source, in their order, and the others."""
        import polars as pl

        reasons: dict[int, str] = {}
        events = [_object(message.body, place, reasons) for place, message in enumerate(messages)]
        frame = pl.DataFrame([column.series(events, reasons) for column in self._columns])
        self._require_partition(frame, reasons)
        good = pl.Series([place not in reasons for place in range(len(messages))], dtype=pl.Boolean)
        return frame.filter(good), [Refused(messages[place], reasons[place]) for place in sorted(reasons)]

    def _require_partition(self, frame: pl.DataFrame, reasons: dict[int, str]) -> None:
        name = time_column(self.source)
        moment = frame[name].dt.epoch("us")
        outside = ~((moment >= self._first) & (moment < self._end)).fill_null(True)
        for place in outside.arg_true():
            reasons.setdefault(place, f"{name} is {frame[name][place]}, in no partition of {self.source.title}")


class Column:
    """Reads one declared column of many events."""

    def __init__(self, name: str, declared: Field, needed: bool) -> None:
        self._name, self._declared, self._needed = name, declared, needed
        self._read, self._kinds = _reader(declared), KINDS.get(declared.dtype)
        self._low, self._high = _limits(declared)

    def series(self, events: Sequence[Mapping[str, Any]], reasons: dict[int, str]) -> pl.Series:
        """A value per event, null for one that is not good; the first reason that is found against an event stays."""
        values = [event.get(self._name) for event in events]
        return self._at_once(values) if self._clean(values) else self._one_by_one(values, reasons)

    def _clean(self, values: Sequence[Any]) -> bool:
        """Whether every value is good at first sight, as nearly all are."""
        kinds = set(map(type, values))
        if self._kinds is None or not kinds <= self._kinds or (self._needed and type(None) in kinds):
            return False
        if not kinds & {int, float}:
            return True
        numbers = [value for value in values if value is not None]
        return self._low <= min(numbers) and max(numbers) <= self._high

    def _at_once(self, values: Sequence[Any]) -> pl.Series:
        import polars as pl

        return pl.Series(self._name, values, self._declared.polars)

    def _one_by_one(self, values: Sequence[Any], reasons: dict[int, str]) -> pl.Series:
        read = [self._value(value, place, reasons) for place, value in enumerate(values)]
        return _series(self._name, read, self._declared)

    def _value(self, value: Any, place: int, reasons: dict[int, str]) -> Any:
        try:
            if value is not None:
                return self._read(value)
            if self._needed:
                reasons.setdefault(place, f"{self._name} is missing or null")
        except BadValueError as error:
            reasons.setdefault(place, f"{self._name} {error}")
        return None


def time_column(source: Source) -> str:
    """The column of the event's time; a source with a stream declares one."""
    assert source.event_timestamp is not None  # noqa: S101  the declaration was refused otherwise
    return source.event_timestamp


def _object(body: bytes, place: int, reasons: dict[int, str]) -> Mapping[str, Any]:
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        reasons[place] = f"is no JSON: {error}"
        return {}
    if not isinstance(event, dict):
        reasons[place] = f"is no JSON object but {type(event).__name__}"
        return {}
    return event


def _bounds(source: Source) -> tuple[float, float]:
    """The times that its partitions begin with and end before, in microseconds."""
    definition = source.partitions
    if not isinstance(definition, dg.TimeWindowPartitionsDefinition):
        return float("-inf"), float("inf")
    end = definition.end_timestamp
    return definition.start_timestamp * 1e6, float("inf") if end is None else end * 1e6


def _series(name: str, values: Sequence[Any], declared: Field) -> pl.Series:
    import polars as pl

    if declared.dtype == "UnixTimestamp":
        return pl.Series(name, values, pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.Series(name, values, declared.polars)


def _reader(declared: Field) -> Reader:
    readers: Mapping[str, Reader] = {
        "Bool": _boolean,
        "Int64": _within(declared, _integer),
        "Float64": _within(declared, _number),
        "String": _text,
        "UnixTimestamp": _moment,
        "Float64Array": _array(declared),
    }
    return readers[declared.dtype]


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadValueError(f"is {value!r}, not true or false")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadValueError(f"is {value!r}, not a whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadValueError(f"is {value!r}, not a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadValueError(f"is {value!r}, not text")
    return value


def _moment(value: Any) -> int:
    """Microseconds since 1970 UTC."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise BadValueError(f"is {value!r}, not a time such as 2013-06-01T12:00:00Z") from None
    if moment.tzinfo is None:
        raise BadValueError(f"is {value!r}, a time without a zone")
    return (moment - EPOCH) // MICROSECOND


def _limits(declared: Field) -> tuple[float, float]:
    """The least and the greatest good number; a number without bounds still has to be one of its type."""
    low, high = (INT64[0], INT64[-1]) if declared.dtype == "Int64" else (-MAX_FLOAT, MAX_FLOAT)
    return (
        low if declared.minimum is None else max(low, declared.minimum),
        high if declared.maximum is None else min(high, declared.maximum),
    )


def _within(declared: Field, read: Callable[[Any], float]) -> Reader:
    low, high = _limits(declared)

    def reader(value: Any) -> float:
        number = read(value)
        if not low <= number <= high:
            raise BadValueError(f"is {number}, outside [{low:g}, {high:g}]")
        return number

    return reader


def _array(declared: Field) -> Reader:
    number = _within(declared, _number)

    def reader(value: Any) -> list[float]:
        if not isinstance(value, list) or (declared.size is not None and len(value) != declared.size):
            raise BadValueError(f"is no list of {declared.size} numbers")
        return [number(item) for item in value]

    return reader
