"""A packed row: one row of a feature view as bytes, in a layout that names and types its features.

    event time, created time (8 bytes each, microseconds since 1970 UTC), layout id (8), a bit per null feature,
    then by feature a number or the length of its text or array, then the texts and arrays; big endian

Written by `resources.online.packed_store` and `resources.feast`, read by the endpoint. The rule that must never
break: a layout's id is the hash of what it says, so a row is read by the layout it was written in or not at all.

The serving process imports this module: nothing heavy may be imported here.
"""

from __future__ import annotations

import math
import struct
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Literal, Self

import orjson

# bool, int, float, time, text, array of floats, and JSON for all else.
Code = Literal["b", "i", "f", "t", "s", "a", "j"]
Values = tuple[Any, ...]
Found = tuple[int, Values]
FIXED = {"b": "?", "i": "q", "f": "d", "t": "q", "s": "I", "a": "I", "j": "I"}
HEADER = struct.Struct(">qq8s")
TIMES = struct.Struct(">qq")
NEVER = 0  # the created time of a row that does not tell it
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
INT64 = range(-(2**63), 2**63)


def moment(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def iso(us: int) -> str:
    """A time as the endpoint writes it."""
    return moment(us).isoformat()


def to_json(value: Any) -> bytes:
    """As JSON, also what JSON has no word for: bytes in base64, a decimal as text, a set in order."""
    return orjson.dumps(value, default=_said)


def _said(value: Any) -> Any:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{value!r} has no form in JSON")


def _floats(part: bytes) -> list[float]:
    return list(struct.unpack(f">{len(part) // 8}d", part))


FROM_BYTES: dict[str, Callable[[bytes], Any]] = {"s": bytes.decode, "a": _floats, "j": orjson.loads}
TO_BYTES: dict[str, Callable[[Any], bytes]] = {
    "s": str.encode,
    "a": lambda value: struct.pack(f">{len(value)}d", *value),
    "j": to_json,
}


@dataclass(frozen=True)
class Layout:
    """The features of a row, by name and code, in their order."""

    names: tuple[str, ...]
    codes: tuple[Code, ...]

    @classmethod
    def of(cls, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Self:
        """The layout that holds those values; a feature of mixed kinds is held as JSON."""
        kinds = [{_code(value) for value in column if value is not None} for column in zip(*rows, strict=True)]
        return cls(tuple(names), tuple(kind.pop() if len(kind) == 1 else "j" for kind in kinds))

    @classmethod
    def from_json(cls, said: bytes) -> Self:
        names, codes = orjson.loads(said)
        return cls(tuple(names), tuple(codes))

    @cached_property
    def json(self) -> bytes:
        return orjson.dumps((self.names, self.codes))

    @cached_property
    def id(self) -> bytes:
        return blake2b(self.json, digest_size=8).digest()

    @cached_property
    def fixed(self) -> struct.Struct:
        return struct.Struct(">" + "".join(FIXED[code] for code in self.codes))

    @cached_property
    def null_bytes(self) -> int:
        return -(-len(self.names) // 8)

    def encode(self, event_ts: int, created: int, values: Sequence[Any]) -> bytes:
        """A row of those values; raises struct.error where one is not of its code."""
        nulls, fixed, tail = 0, [], []
        for place, (code, value) in enumerate(zip(self.codes, values, strict=True)):
            if value is None:
                nulls |= 1 << place
                fixed.append(0)
            elif code in TO_BYTES:
                tail.append(TO_BYTES[code](value))
                fixed.append(len(tail[-1]))
            else:
                fixed.append((value - EPOCH) // MICROSECOND if code == "t" else value)
        bits = nulls.to_bytes(self.null_bytes, "little")
        return b"".join((HEADER.pack(event_ts, created, self.id), bits, self.fixed.pack(*fixed), *tail))

    @cached_property
    def start(self) -> int:
        """Where the fixed part begins."""
        return HEADER.size + self.null_bytes

    @cached_property
    def width(self) -> int | None:
        """The bytes of a row; None where texts or arrays make rows of any length."""
        return None if set(self.codes) & FROM_BYTES.keys() else self.start + self.fixed.size

    def reading(self, features: Sequence[str], time: Callable[[int], Any] = iso) -> Reading:
        """How to read those features of a row, in that order; None for one that the layout does not have.

        `time` makes of microseconds what a time is to be.
        """
        return Reading(self, self._pick(features), time)

    def values(self, row: bytes, time: Callable[[int], Any]) -> Values:
        """All values of a row; most rows are numbers without a null, which struct gives as they are."""
        plain = self.fixed.unpack_from(row, self.start)
        if not self._unfinished and row.startswith(self._whole, HEADER.size):
            return plain
        nulls, at = int.from_bytes(row[HEADER.size : self.start], "little"), self.start + self.fixed.size
        mended = list(plain)
        for place, code in self._unfinished:
            if code in FROM_BYTES:
                end = at + mended[place]
                mended[place] = FROM_BYTES[code](row[at:end]) if not nulls >> place & 1 else None
                at = end
            elif code == "t":
                mended[place] = time(mended[place])
        while nulls:
            place = nulls.bit_length() - 1
            mended[place] = None
            nulls ^= 1 << place
        return tuple(mended)

    @cached_property
    def _whole(self) -> bytes:
        return bytes(self.null_bytes)

    @cached_property
    def _unfinished(self) -> list[tuple[int, str]]:
        return [(place, code) for place, code in enumerate(self.codes) if code in FROM_BYTES or code == "t"]

    def _pick(self, features: Sequence[str]) -> Callable[[Values], Values] | None:
        if tuple(features) == self.names:
            return None
        place = {name: number for number, name in enumerate(self.names)}
        places = [place.get(name, len(self.names)) for name in features]
        if len(places) < 2:
            return lambda values: tuple((*values, None)[at] for at in places)
        pick = itemgetter(*places)
        return (lambda values: pick((*values, None))) if len(self.names) in places else pick


class Reading:
    """Some features of the rows of one layout: `read` gives (event time, values) of a row, `read_all` of many."""

    def __init__(self, layout: Layout, pick: Callable[[Values], Values] | None, time: Callable[[int], Any]) -> None:
        self._layout, self._pick, self._time = layout, pick, time
        plain = layout.width is not None and "t" not in layout.codes
        self._width = layout.width if plain else None
        self._values = struct.Struct(f">{layout.start}x{layout.fixed.format[1:]}")
        self._head = layout.id + bytes(layout.null_bytes)
        self._time_and_head = f"q8x{len(self._head)}s{layout.fixed.size}x"

    def read(self, row: bytes) -> Found:
        values = self._layout.values(row, self._time)
        return int.from_bytes(row[:8], signed=True), values if self._pick is None else self._pick(values)

    def read_all(self, rows: Sequence[bytes]) -> list[Found] | None:
        """All at once, if each is of this layout and holds numbers only and no null; else None."""
        joined, width = b"".join(rows), self._width
        if width is None or len(joined) != len(rows) * width:
            return None
        said = _repeated(self._time_and_head, len(rows)).unpack(joined)
        if said[1::2].count(self._head) != len(rows):
            return None
        values: Iterator[Values] = self._values.iter_unpack(joined)
        return list(zip(said[::2], values if self._pick is None else map(self._pick, values), strict=True))


@lru_cache(maxsize=8)
def _repeated(form: str, times: int) -> struct.Struct:
    """What reads as many at once: to step from row to row costs more than what is read of each."""
    return struct.Struct(">" + form * times)


def _code(value: Any) -> Code:
    if isinstance(value, bool):
        return "b"
    if isinstance(value, int):
        return "i" if value in INT64 else "j"
    if isinstance(value, float):
        return "f"
    if isinstance(value, str):
        return "s"
    if isinstance(value, datetime) and value.tzinfo is not None:
        return "t"
    return "a" if _is_vector(value) else "j"


def _is_vector(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, float) and math.isfinite(part) for part in value)
