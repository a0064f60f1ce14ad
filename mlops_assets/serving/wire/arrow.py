"""Arrow's stream format: a table of one row an answer, in both directions.

A request's table holds every input by name, or join keys and request features; the label key may be beside, and the
time asked about is the schema's metadata `at` or a column `at` that is the same in every row.

What comes is read by hand, bounds before bytes: readers made for one's own files allocate what a message claims to
hold (Polars ends the process on a length of 2^40, any compressed buffer is a bomb). So only what a model can be asked
is read: numbers, truths, text, dictionaries of text, times, lists of numbers, none of it compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mlops_assets.fields import TypeName
from mlops_assets.serving.wire.columns import Mask, Values
from mlops_assets.serving.wire.flat import Flat
from mlops_assets.serving.wire.problems import InvalidRequestError
from mlops_assets.serving.wire.raw import MAX_BODY, Table
from mlops_assets.serving.wire.replies import Part, reply_columns

SCHEMA, DICTIONARY, BATCH = 1, 2, 3  # kinds of message
NULL, INT, FLOAT, TEXT, TRUTH, TIME, LIST, FIXED_LIST, LARGE_TEXT, LARGE_LIST, TEXT_VIEW = (  # kinds of column
    1, 2, 3, 5, 6, 10, 12, 16, 20, 21, 24,
)  # fmt: skip
MAX_MESSAGES = 64
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # a time without a zone stays one
TICKS = (1_000_000, 1_000, 1, 0.001)  # microseconds of a second, milli-, micro- and nanosecond
FIX = "Send an uncompressed Arrow IPC stream of numbers, booleans, text, timestamps or lists of numbers."


def read_arrow(body: bytes) -> Table:
    """The table of a stream. InvalidRequestError when it is none, or holds what no model reads."""
    try:
        said, columns = _Stream(body).read()
    except InvalidRequestError:
        raise
    except (ValueError, struct.error, LookupError, OverflowError) as error:
        why = "it breaks off" if isinstance(error, struct.error) else error
        raise InvalidRequestError.of(f"the body is not an Arrow stream that is taken ({why})", FIX) from error
    if not columns or not next(iter(columns.values())).size:
        raise InvalidRequestError.of("the table has no rows", "Send one row for each answer wanted.", "rows")
    from mlops_assets.serving.wire.formats import moment

    at = _asked_at(columns.pop("at")) if "at" in columns else said
    if not columns:
        raise InvalidRequestError.of("the table has no column but at", "Send the inputs beside.", "rows")
    return Table(columns, moment(at))


def _asked_at(values: Values) -> str:
    """The one time of a column of times."""
    times = set(values.to_list())
    if len(times) == 1 and isinstance(time := times.pop(), str):
        return time
    raise InvalidRequestError.of(
        "a column of more than one time, or of none", "All rows of a request ask about the same time.", "at"
    )


@dataclass(slots=True, frozen=True)
class _Field:
    """A column as the schema announces it: `numbers` is the type of what it holds where those are numbers (of a
    dictionary, its places), `items` what a list or a dictionary is of."""

    name: str
    kind: int
    type: Flat
    numbers: np.dtype[Any] | None = None
    items: _Field | None = None
    dictionary: int | None = None

    @classmethod
    def of(cls, field: Flat, depth: int = 0) -> _Field:
        name = field.text(0) or ""
        kind, of_kind, encoding = field.number(2, "B"), field.table(3), field.table(4)
        if of_kind is None or depth > 1:
            raise ValueError(f"column {name!r} is of no known type")
        if encoding is None:
            items = [cls.of(item, depth + 1) for item in field.tables(5)[:1]]
            return cls(name, kind, of_kind, _number_type(kind, of_kind), items[0] if items else None)
        if kind not in (TEXT, LARGE_TEXT, TEXT_VIEW):
            raise ValueError(f"column {name!r} is a dictionary of other things than text")
        index = encoding.table(1)
        places = _number_type(INT, index) if index else np.dtype("<i4")  # as Arrow has it where nothing is said
        return cls(name, INT, of_kind, places, cls(name, kind, of_kind), encoding.number(0, "q"))


def _number_type(kind: int, of_kind: Flat) -> np.dtype[Any] | None:
    if kind == FLOAT:
        return np.dtype(("<f2", "<f4", "<f8")[of_kind.number(0, "h")])
    if kind == INT and (bits := of_kind.number(0, "i")) in (8, 16, 32, 64):
        return np.dtype(f"<{'i' if of_kind.number(1, '?') else 'u'}{bits // 8}")
    return None


class _Stream:
    """The messages of one stream, read once from start to end."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._fields: list[_Field] = []
        self._at: str | None = None
        self._dictionaries: dict[int, list[str | None]] = {}
        self._text = MAX_BODY

    def read(self) -> tuple[str | None, dict[str, Values]]:
        """The metadata `at`, and the columns."""
        from mlops_assets.serving.wire.formats import refuse_too_many

        batches: list[list[Values]] = []
        rows = 0
        for number, (message, data) in enumerate(self._messages()):
            kind, header = message.number(1, "B"), message.table(2)
            if header is None or number > MAX_MESSAGES:
                raise ValueError(f"a message without a header, or more than {MAX_MESSAGES}")
            if kind == SCHEMA:
                self._announce(header)
            elif kind == DICTIONARY:
                self._define(header, data)
            elif kind == BATCH:
                rows += (size := header.number(0, "q"))
                refuse_too_many(rows)
                batch = _Batch(header, data, self)
                batches.append([batch.column(field, size) for field in self._fields])
        columns = [_joined(parts) for parts in zip(*batches, strict=True)]
        return self._at, {field.name: values for field, values in zip(self._fields, columns, strict=False)}

    def _messages(self) -> Iterator[tuple[Flat, memoryview]]:
        """Each message's table, and the bytes that belong to it."""
        at, view = 0, memoryview(self._body)
        while at < len(self._body):
            mark, size = struct.unpack_from("<Ii", self._body, at)
            if mark != 0xFFFFFFFF or size < 0:
                raise ValueError("no message where one should begin")
            if size == 0:
                return
            message = Flat.root(self._body[at + 8 : at + 8 + size])
            start, length = at + 8 + size, message.number(3, "q")
            if length < 0 or start + length > len(self._body):
                raise ValueError("a message ends beyond the body")
            yield message, view[start : start + length]
            at = start + length

    def _announce(self, schema: Flat) -> None:
        if schema.number(0, "h"):
            raise ValueError("big-endian numbers")
        self._fields = [_Field.of(field) for field in schema.tables(1)]
        names = [field.name for field in self._fields]
        if len({*names}) < len(names):
            raise ValueError("two columns of one name")
        self._at = next((pair.text(1) for pair in schema.tables(2) if pair.text(0) == "at"), None)

    def _define(self, header: Flat, data: memoryview) -> None:
        number, batch = header.number(0, "q"), header.table(1)
        field = next((field.items for field in self._fields if field.dictionary == number), None)
        if batch is None or field is None or header.number(2, "?"):
            raise ValueError("a dictionary that no column has, or a change to one")
        self._dictionaries[number] = _Batch(batch, data, self).column(field, batch.number(0, "q")).data

    def terms(self, number: int) -> list[str | None]:
        return self._dictionaries[number]

    def count_text(self, size: int) -> None:
        """Views and dictionaries name a text many times over; together they may be no longer than a body may be."""
        self._text -= size
        if self._text < 0:
            raise ValueError(f"more than {MAX_BODY} bytes of text")


class _Batch:
    """The columns of one record batch, taken in their order."""

    def __init__(self, header: Flat, data: memoryview, stream: _Stream) -> None:
        if header.table(3) is not None:
            raise ValueError("compressed buffers")
        self._nodes = iter(header.structs(1, "qq"))
        self._buffers = iter(header.structs(2, "qq"))
        self._views = iter(header.structs(4, "q"))
        self._data = data
        self._stream = stream

    def column(self, field: _Field, rows: int | None = None) -> Values:
        """The next column, of `rows` values."""
        size: int = _next(self._nodes)[0]
        if size < 0 or (rows is not None and size != rows):
            raise ValueError("a column is not as long as its table")
        if field.kind == NULL:
            return Values("Float64", np.full(size, np.nan))
        valid = self._buffer()
        missing = ~_bits(valid, size) if len(valid) else None
        if field.dictionary is not None:
            return self._terms(field, size, missing)
        reader = READERS.get(field.kind)
        if reader is None:
            raise ValueError(f"column {field.name!r} is of a type that no model reads")
        return reader(self, field, size, missing)

    def _buffer(self) -> memoryview:
        start, size = _next(self._buffers)
        if start < 0 or size < 0 or start + size > len(self._data):
            raise ValueError("a buffer ends beyond its message")
        return self._data[start : start + size]

    def numbers(self, field: _Field, size: int, missing: Mask | None) -> Values:
        if field.numbers is None:
            raise ValueError(f"column {field.name!r} holds numbers of an unknown width")
        numbers = np.frombuffer(self._buffer(), field.numbers, size)
        if field.numbers.kind == "f":
            column = numbers.astype(np.float64)
            if missing is not None:
                column[missing] = np.nan
            return Values("Float64", column)
        if field.numbers == np.uint64 and numbers[_given(size, missing)].max(initial=0) >= 2**63:
            raise ValueError(f"column {field.name!r} holds a number beyond Int64")
        return Values("Int64", numbers.astype(np.int64), missing)

    def truths(self, _: _Field, size: int, missing: Mask | None) -> Values:
        return Values("Bool", _bits(self._buffer(), size), missing)

    def _terms(self, field: _Field, size: int, missing: Mask | None) -> Values:
        """Places in a dictionary of texts."""
        terms = self._stream.terms(field.dictionary or 0)
        places = np.frombuffer(self._buffer(), field.numbers, size)
        given = places[_given(size, missing)]
        if len(given) and (given.min() < 0 or given.max() >= len(terms)):
            raise ValueError(f"column {field.name!r} has a place beyond its dictionary")
        some = [terms[place] for place in given.tolist()]
        self._stream.count_text(sum(len(text) for text in some if text is not None))
        texts = iter(some)
        return _each("String", size, missing, lambda _: next(texts))

    def texts(self, field: _Field, size: int, missing: Mask | None) -> Values:
        ends = self._ends(size, np.int32 if field.kind == TEXT else np.int64)
        data = self._buffer()
        if ends[-1] > len(data):
            raise ValueError("a text ends beyond its buffer")
        if (plain := bytes(data[: ends[-1]])).isascii():  # a byte a character: decoded once, then cut
            whole = plain.decode()
            return _each("String", size, missing, lambda place: whole[ends[place] : ends[place + 1]])
        return _each("String", size, missing, lambda place: str(data[ends[place] : ends[place + 1]], "utf-8"))

    def _ends(self, size: int, dtype: type[np.integer[Any]]) -> list[int]:
        """Where the values of a column of texts or lists begin and end, one after the other."""
        buffer = self._buffer()
        if not len(buffer) and not size:
            return [0]
        ends: list[int] = np.frombuffer(buffer, dtype, size + 1).tolist()
        if ends[0] < 0 or any(end < start for start, end in pairwise(ends)):
            raise ValueError("values that overlap")
        return ends

    def text_views(self, _: _Field, size: int, missing: Mask | None) -> Values:
        """Views: length, then the text itself up to 12 bytes, or a prefix, which buffer, and where in it."""
        views = self._buffer()
        count = _next(self._views)[0]
        if len(views) < 16 * size or not 0 <= count <= len(self._data):
            raise ValueError("fewer views than values, or more buffers than bytes")
        texts = _Texts([self._buffer() for _ in range(count)], self._stream)
        cut = [view for (view,) in struct.iter_unpack("16s", views[: 16 * size])]
        return _each("String", size, missing, lambda place: texts[cut[place]])

    def lists(self, field: _Field, size: int, missing: Mask | None) -> Values:
        """Lists of numbers, all of one length but for those that are null."""
        if field.items is None or field.items.kind not in (INT, FLOAT):
            raise ValueError(f"column {field.name!r} is of lists of other things than numbers")
        width = field.type.number(0, "i")
        if field.kind == FIXED_LIST:
            ends = range(0, width * size + 1, width) if width > 0 else [0] * (size + 1)
        else:
            ends = self._ends(size, np.int32 if field.kind == LIST else np.int64)
        items = self.column(field.items).numbers()
        if ends[-1] > len(items):
            raise ValueError(f"column {field.name!r} has too few items")
        return _lists(field.name, ends, items, missing)

    def times(self, field: _Field, size: int, missing: Mask | None) -> Values:
        ticks = TICKS[field.type.number(0, "h")]
        zone = UTC if field.type.text(1) else None
        moments = np.frombuffer(self._buffer(), np.int64, size).tolist()
        return _each("UnixTimestamp", size, missing, lambda place: _iso(moments[place], ticks, zone))


class _Texts(dict[bytes, str]):
    """The text of each view, read once however often it is named."""

    def __init__(self, buffers: list[memoryview], stream: _Stream) -> None:
        super().__init__()
        self._buffers = buffers
        self._stream = stream

    def __missing__(self, view: bytes) -> str:
        length, _, which, start = struct.unpack("<iiii", view)
        if 0 <= length <= 12:
            text = self[view] = str(view[4 : 4 + length], "utf-8")
            return text
        if length < 0 or which < 0 or start < 0 or start + length > len(self._buffers[which]):
            raise ValueError("a text ends beyond its buffer")
        self._stream.count_text(length)  # each time, so a long one is not kept
        return str(self._buffers[which][start : start + length], "utf-8")


Reader = Callable[[_Batch, _Field, int, Mask | None], Values]
READERS: dict[int, Reader] = {
    INT: _Batch.numbers,
    FLOAT: _Batch.numbers,
    TRUTH: _Batch.truths,
    TEXT: _Batch.texts,
    LARGE_TEXT: _Batch.texts,
    TEXT_VIEW: _Batch.text_views,
    TIME: _Batch.times,
    LIST: _Batch.lists,
    LARGE_LIST: _Batch.lists,
    FIXED_LIST: _Batch.lists,
}


def _next(parts: Iterator[tuple[int, ...]]) -> tuple[int, ...]:
    if (part := next(parts, None)) is None:
        raise ValueError("a table of fewer parts than its schema has columns")
    return part


def _iso(moment: int, ticks: float, zone: Any) -> str:
    """A time as text; whole microseconds."""
    micros = moment * int(ticks) if ticks >= 1 else moment // 1000
    return (EPOCH + timedelta(microseconds=micros)).replace(tzinfo=zone).isoformat()


def _bits(data: memoryview, size: int) -> Mask:
    return np.unpackbits(np.frombuffer(data, np.uint8, (size + 7) // 8), count=size, bitorder="little").view(np.bool_)


def _given(size: int, missing: Mask | None) -> Mask:
    return np.ones(size, np.bool_) if missing is None else ~missing


def _each(dtype: TypeName, size: int, missing: Mask | None, read: Callable[[int], Any]) -> Values:
    """A column of text, read where it is not missing: what lies in the other places may be anything."""
    gone = [False] * size if missing is None else missing.tolist()
    return Values(dtype, [None if gone[place] else read(place) for place in range(size)])


def _lists(name: str, ends: Sequence[int], numbers: NDArray[np.float64], missing: Mask | None) -> Values:
    null = ~_given(len(ends) - 1, missing)
    given = [(start, end) for (start, end), gone in zip(pairwise(ends), null.tolist(), strict=True) if not gone]
    widths = {end - start for start, end in given}
    if len(widths) > 1 or max(widths, default=0) * len(null) > MAX_BODY:
        raise ValueError(f"column {name!r} has arrays of several lengths, or too large ones")
    block = np.full((len(null), max(widths, default=0)), np.nan)
    if given:
        block[~null] = np.stack([numbers[start:end] for start, end in given])
    return Values("Float64Array", block, null)


def _joined(parts: Sequence[Values]) -> Values:
    """One column of its batches."""
    first, *others = parts
    if not others:
        return first
    if isinstance(first.data, list):
        return Values(first.dtype, [value for part in parts for value in part.data])
    missing = None if first.dtype == "Float64" else np.concatenate([part.null() for part in parts])
    arrays = [part.data for part in parts]
    if first.dtype == "Float64Array":  # a batch of nothing but nulls has arrays of no length
        width = max(array.shape[1] for array in arrays)
        arrays = [array if array.size else np.full((len(array), width), np.nan) for array in arrays]
    return Values(first.dtype, np.concatenate(arrays), missing)


def write_arrow(parts: Sequence[Part]) -> bytes:
    """The answers as a table of one row each, in the order of the request's rows; `fallbacks` is JSON text."""
    import polars as pl

    columns: dict[str, Any] = reply_columns(parts)
    columns["prediction"] = pl.Series("prediction", columns["prediction"], pl.Float64)
    columns["fallbacks"] = [orjson.dumps(some).decode() if some else "[]" for some in columns["fallbacks"]]
    for name in ("release", "version", "variant", "fallbacks"):
        values = columns[name]
        if values.count(values[0]) == len(values):  # as it nearly always is: text is written once
            columns[name] = pl.Series(name, values[:1], pl.String).new_from_index(0, len(values))
    body = BytesIO()
    # the oldest layout of text, since many readers know no views
    pl.DataFrame(columns).write_ipc_stream(body, compat_level=pl.CompatLevel.oldest())
    return body.getvalue()
