"""Reads the few flatbuffers tables that Arrow's messages are made of, out of bytes that nobody vouches for.

A table is a list of slots, each a number, a text, another table or a vector, found by offsets. Whatever points out of
the bytes, or is larger than a request has use for, is a ValueError; nothing is allocated by what the bytes claim.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Self

MAX_ITEMS = 2_000
MAX_TEXT = 1_024


@dataclass(slots=True, frozen=True)
class Flat:
    """One table at `at` in `data`."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> Self:
        return cls(data, _read(data, "I", 0))

    def number(self, slot: int, code: str, default: int = 0) -> int:
        """A scalar; `code` is `struct`'s."""
        where = self._where(slot)
        return default if where is None else _read(self.data, code, where)

    def table(self, slot: int) -> Flat | None:
        where = self._where(slot)
        return None if where is None else Flat(self.data, self._target(where))

    def text(self, slot: int) -> str | None:
        where = self._where(slot)
        if where is None:
            return None
        start = self._target(where)
        size = _read(self.data, "I", start)
        if size > MAX_TEXT or start + 4 + size > len(self.data):
            raise ValueError("a name is too long")
        return self.data[start + 4 : start + 4 + size].decode()

    def tables(self, slot: int) -> list[Flat]:
        """A vector of tables."""
        start, count = self._vector(slot)
        places = range(start, start + 4 * count, 4)
        return [Flat(self.data, self._target(place)) for place in places]

    def structs(self, slot: int, code: str) -> list[tuple[Any, ...]]:
        """A vector of structs, each of the layout `code`."""
        start, count = self._vector(slot, 5 * MAX_ITEMS)
        size = struct.calcsize("<" + code)
        if start + size * count > len(self.data):
            raise ValueError("a vector ends beyond its message")
        return list(struct.iter_unpack("<" + code, self.data[start : start + size * count]))

    def _vector(self, slot: int, most: int = MAX_ITEMS) -> tuple[int, int]:
        where = self._where(slot)
        if where is None:
            return 0, 0
        start = self._target(where)
        count = _read(self.data, "I", start)
        if count > most:
            raise ValueError(f"{count} items, more than {most}")
        return start + 4, count

    def _where(self, slot: int) -> int | None:
        """Where a slot's value lies, None where the table leaves it out."""
        slots = self.at - _read(self.data, "i", self.at)
        place = 4 + 2 * slot
        offset = _read(self.data, "H", slots + place) if place < _read(self.data, "H", slots) else 0
        return self.at + offset if offset else None

    def _target(self, where: int) -> int:
        return where + _read(self.data, "I", where)


def _read(data: bytes, code: str, at: int) -> int:
    if at < 0:  # `struct` would count from the end
        raise ValueError("an offset points before its message")
    number: int = struct.unpack_from("<" + code, data, at)[0]
    return number
