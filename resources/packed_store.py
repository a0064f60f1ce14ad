"""The packed online store: one small JSON value per view and key, for the endpoint to read.

Feast's own online format costs a protobuf per feature; here a row is one value. The same rows are
published beside it in Feast's format by `resources.feast`. The rule that must never break: an older
event never replaces a newer one, whatever the order of arrival and however many writers; the
comparison is made inside the store, in the statement that writes.

The serving process imports this module: nothing heavy may be imported here.
"""

from __future__ import annotations

import os
import re
import sqlite3
import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import orjson
from filelock import FileLock

from resources.environment import home, redis_url

Key = tuple[Any, ...]
Row = tuple[Key, int, Mapping[str, Any]]
Item = TypeVar("Item")
TABLE = re.compile(r"[a-z][a-z0-9_]*")
SCHEMES = ("sqlite:///<path>", "redis://<host>:<port>/<db>", "rediss://<host>:<port>/<db>")


class UnknownStoreError(ValueError):
    """A store URL has a scheme that no packed store understands."""

    @classmethod
    def of(cls, url: str) -> Self:
        return cls(f"Online store {url!r} has an unknown scheme (known: {', '.join(SCHEMES)}). Set MLOPS_ONLINE_STORE.")


class TableNameError(ValueError):
    """A table name that could not have come from a feature view."""

    @classmethod
    def of(cls, table: str) -> Self:
        return cls(
            f"Online table {table!r} is no valid name (allowed: {TABLE.pattern}). "
            "A feature view's table is `<team>__<view>`."
        )


def online_store_url() -> str:
    """Where the online store is: MLOPS_ONLINE_STORE, the environment's Redis, or an SQLite file under home."""
    return os.environ.get("MLOPS_ONLINE_STORE") or redis_url() or f"sqlite:///{home() / 'feast' / 'packed.db'}"


class PackedStore(ABC):
    """The newest row per key of each view table.

    A key is the values of the view's join keys in their order; a value is a mapping of feature to
    JSON value (a NaN or an infinity is stored as null, a time as an ISO-8601 string).
    """

    @staticmethod
    def open(url: str) -> PackedStore:
        """Open the store at `url`, creating it when absent; raises UnknownStoreError."""
        if url.startswith("sqlite:///"):
            return SqlitePackedStore(Path(url.removeprefix("sqlite:///")))
        if url.startswith(("redis://", "rediss://")):
            return RedisPackedStore(url)
        raise UnknownStoreError.of(url)

    def write(self, table: str, rows: Iterable[Row]) -> int:
        """Publish (key, event time in microseconds since 1970 UTC, features); return how many took effect.

        A row takes effect unless the store already holds a later event for its key.
        """
        return self._write(
            _valid(table), [(orjson.dumps(key), event_ts, orjson.dumps(features)) for key, event_ts, features in rows]
        )

    def read(self, table: str, keys: Sequence[Key]) -> list[tuple[int, dict[str, Any]] | None]:
        """For each key, in order: (event time in microseconds, features), or None. Safe from any thread."""
        found = self._read(_valid(table), [orjson.dumps(key) for key in keys])
        return [None if row is None else (row[0], orjson.loads(row[1])) for row in found]

    def count(self, table: str) -> int:
        """How many keys the table holds; 0 for one never written."""
        return self._count(_valid(table))

    @abstractmethod
    def close(self) -> None:
        """Give connections back; the store is not usable afterwards."""

    @abstractmethod
    def _write(self, table: str, rows: list[tuple[bytes, int, bytes]]) -> int: ...

    @abstractmethod
    def _read(self, table: str, keys: list[bytes]) -> list[tuple[int, bytes] | None]: ...

    @abstractmethod
    def _count(self, table: str) -> int: ...


def _valid(table: str) -> str:
    if not TABLE.fullmatch(table):
        raise TableNameError.of(table)
    return table


def _chunks(items: list[Item], size: int) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class SqlitePackedStore(PackedStore):
    """One table of all views, `packed(view, key, event_ts, value)`, in WAL mode: readers never wait."""

    VARIABLES = 30_000  # SQLite's limit is 32,766 in a statement

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._idle: deque[sqlite3.Connection] = deque()
        # SQLite does not wait its turn to enter WAL mode: first openers at once would meet "database is locked".
        with FileLock(f"{path}.lock"), self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS packed (view TEXT, key BLOB, event_ts INTEGER NOT NULL, "
                "value BLOB NOT NULL, PRIMARY KEY (view, key)) WITHOUT ROWID"
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread holds meanwhile; as many exist as were ever needed at once."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _write(self, table: str, rows: list[tuple[bytes, int, bytes]]) -> int:
        with self._connection() as connection:
            before = connection.total_changes
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                connection.executemany(
                    "INSERT INTO packed VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET event_ts = excluded.event_ts, "
                    "value = excluded.value WHERE excluded.event_ts >= packed.event_ts",
                    ((table, *row) for row in rows),
                )
            return connection.total_changes - before

    def _read(self, table: str, keys: list[bytes]) -> list[tuple[int, bytes] | None]:
        found: dict[bytes, tuple[int, bytes]] = {}
        with self._connection() as connection:
            for chunk in _chunks(keys, self.VARIABLES):
                marks = ",".join("?" * len(chunk))
                query = f"SELECT key, event_ts, value FROM packed WHERE view = ? AND key IN ({marks})"  # noqa: S608  question marks
                rows = connection.execute(query, (table, *chunk))
                found.update((key, (event_ts, value)) for key, event_ts, value in rows)
        return [found.get(key) for key in keys]

    def _count(self, table: str) -> int:
        with self._connection() as connection:
            (count,) = connection.execute("SELECT count(*) FROM packed WHERE view = ?", (table,)).fetchone()
        return int(count)


class RedisPackedStore(PackedStore):
    """One hash per view, `mlops:packed:<view>`: field = key, value = event time (8 bytes, big endian) + JSON.

    Each row is compared and set atomically in the server. A whole write is not one transaction, which
    would stall the readers of a single-threaded server; a write cut short is made good by repeating it.
    """

    # Lua numbers are doubles: comparing the halves keeps 64-bit microseconds exact.
    KEEP_NEWEST = """
    local written = 0
    for i = 1, #ARGV, 2 do
        local current = redis.call('HGET', KEYS[1], ARGV[i])
        local newer = true
        if current then
            local old_high, old_low = struct.unpack('>i4I4', current)
            local new_high, new_low = struct.unpack('>i4I4', ARGV[i + 1])
            newer = new_high > old_high or (new_high == old_high and new_low >= old_low)
        end
        if newer then
            redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
            written = written + 1
        end
    end
    return written
    """
    ROWS_PER_CALL = 500  # about a millisecond of the server's time
    EVENT_TS = struct.Struct(">q")

    def __init__(self, url: str) -> None:
        import redis

        self._client = redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5)
        self._keep_newest = self._client.register_script(self.KEEP_NEWEST)

    def close(self) -> None:
        self._client.close()

    def _write(self, table: str, rows: list[tuple[bytes, int, bytes]]) -> int:
        with self._client.pipeline(transaction=False) as pipeline:
            for chunk in _chunks(rows, self.ROWS_PER_CALL):
                pairs = (part for key, event_ts, value in chunk for part in (key, self.EVENT_TS.pack(event_ts) + value))
                self._keep_newest(keys=[self._hash(table)], args=list(pairs), client=pipeline)
            return sum(pipeline.execute())

    def _read(self, table: str, keys: list[bytes]) -> list[tuple[int, bytes] | None]:
        if not keys:
            return []
        values = cast("list[bytes | None]", self._client.hmget(self._hash(table), keys))
        return [None if packed is None else self._unpack(packed) for packed in values]

    def _unpack(self, packed: bytes) -> tuple[int, bytes]:
        (event_ts,) = self.EVENT_TS.unpack_from(packed)
        return event_ts, packed[self.EVENT_TS.size :]

    def _count(self, table: str) -> int:
        return int(self._client.hlen(self._hash(table)))

    @staticmethod
    def _hash(table: str) -> str:
        return f"mlops:packed:{table}"
