"""The packed online store: the newest row per view and key, one small value each, for the endpoint to read.

A value is a packed row (`resources.online.packed_row`); Feast's own format costs a protobuf per feature. The same
rows are held beside it in Feast's format, and written in the same transaction or script. The rule that must never
break: an older event never replaces a newer one, whatever the order of arrival and however many writers; the
comparison is made inside the store, where nobody writes in between.

    SQLite: tables packed_rows(view, key, event_ts, created_ts, value), packed_layouts(id, layout), and Feast's own
    Redis:  hashes mlops:rows:<view> (key -> row), mlops:layouts (id -> layout), and Feast's own

The serving process imports this module: nothing heavy may be imported here.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, compress
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
from filelock import FileLock

from resources.environment import home, redis_url
from resources.online.packed_row import NEVER, TIMES, Found, Layout, Reading, Values
from resources.online.redis_wire import Patience, RedisWire, packet

Key = tuple[Any, ...]
Row = tuple[Key, int, Mapping[str, Any]]
Item = TypeVar("Item")
TABLE = re.compile(r"[a-z][a-z0-9_]*")
MANY = 4  # rows from which on they are cheaper read at once
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


class OnlineStoreUnavailableError(ConnectionError):
    """The online store did not answer, although it was asked as often as its caller had time for."""

    @classmethod
    def of(cls, where: str, why: Exception) -> Self:
        return cls(
            f"The online store at {where} did not answer ({why}). "
            "Nothing was half read or half written: repeat the call when the store is back."
        )


def online_store_url() -> str:
    """Where the online store is: MLOPS_ONLINE_STORE, the environment's Redis, or an SQLite file under home."""
    return os.environ.get("MLOPS_ONLINE_STORE") or redis_url() or f"sqlite:///{home() / 'feast' / 'online_store.db'}"


@dataclass(frozen=True)
class TableRead:
    """Some features of one table, in the order in which they are wanted."""

    table: str
    features: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Packed rows on their way into a table: row i is `rows[i]` of key `keys[i]`; no key comes twice."""

    layouts: Sequence[Layout]
    keys: Sequence[bytes]
    rows: Sequence[bytes]
    beside: Any = None
    """The same rows in Feast's format: `FeastHashes` for Redis, `FeastStatement` for SQLite."""

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, wanted: Sequence[bool]) -> Self:
        """The wanted rows, with nothing beside yet."""
        return type(self)(self.layouts, list(compress(self.keys, wanted)), list(compress(self.rows, wanted)))


@dataclass(frozen=True)
class FeastHashes:
    """Feast's format in Redis: row i sets `fields` of hash `hashes[i]` to the i-th value of each column."""

    hashes: Sequence[bytes]
    fields: Sequence[bytes]
    columns: Sequence[Sequence[bytes]]


@dataclass(frozen=True)
class FeastStatement:
    """Feast's format in SQLite: row i is `statement` with the i-th of each column, into what `table` makes.

    The first column is what the table is ordered by.
    """

    table: str
    statement: str
    columns: Sequence[Sequence[Any]]


class Readings(dict[bytes, Reading]):
    """How to read a row, by the id of its layout; a layout met for the first time is fetched from the store."""

    def __init__(self, features: Sequence[str], layout: Callable[[bytes], Layout]) -> None:
        super().__init__()
        self._features, self._layout = features, layout

    def __missing__(self, layout_id: bytes) -> Reading:
        reading = self[layout_id] = self._layout(layout_id).reading(self._features)
        return reading

    def read(self, rows: Sequence[bytes | None]) -> Sequence[Found | None]:
        """In order; rows of one layout are read at once, since most tables have but one."""
        held: Sequence[bytes] = rows if all(rows) else [row for row in rows if row is not None]  # type: ignore[assignment]
        found = self[held[0][16:24]].read_all(held) if len(held) >= MANY else None
        if found is None:
            found = [self[row[16:24]].read(row) for row in held]
        if len(held) == len(rows):
            return found
        some = iter(found)
        return [None if row is None else next(some) for row in rows]


class Reader:
    """What one endpoint reads, compiled once: the tables, their features, and the layouts met so far."""

    def __init__(self, store: PackedStore, reads: Sequence[TableRead]) -> None:
        self._store = store
        self._tables = [_valid(read.table) for read in reads]
        self._readings = [Readings(read.features, store.layout) for read in reads]

    def read(self, keys: Sequence[Sequence[Key]]) -> list[Sequence[Found | None]]:
        """For each table, for each of its keys in order: (event time in microseconds, values), or None.

        One round trip for all tables. Values are in the order of the table's features, None where the row has
        no such feature. Safe from any thread; raises OnlineStoreUnavailableError.
        """
        distinct = {id(some): some for some in keys}  # views of one entity share theirs
        said = {which: list(map(orjson.dumps, some)) for which, some in distinct.items()}
        wanted = [(table, said[id(some)]) for table, some in zip(self._tables, keys, strict=True)]
        answers = self._store.fetch(wanted)
        return [readings.read(rows) for readings, rows in zip(self._readings, answers, strict=True)]


class PackedStore(ABC):
    """The newest row per key of each view table.

    A key is the values of the view's join keys in their order, `()` for a table of one row; features are numbers,
    texts, arrays of floats, or other JSON (a NaN or an infinity is stored as null, a time read as ISO-8601 text).
    """

    def __init__(self) -> None:
        self._layouts: dict[bytes, Layout] = {}

    @staticmethod
    def open(url: str, within: float | None = None) -> PackedStore:
        """Open the store at `url`, creating it when absent; raises UnknownStoreError.

        Who cannot wait gives the seconds `within` which an answer is wanted, and gets a store that must be there.
        """
        if url.startswith("sqlite:///"):
            return SqlitePackedStore(Path(url.removeprefix("sqlite:///")), within)
        if url.startswith(("redis://", "rediss://")):
            return RedisPackedStore(url, within)
        raise UnknownStoreError.of(url)

    def write(self, table: str, rows: Iterable[Row]) -> int:
        """Publish (key, event time in microseconds since 1970 UTC, features); return how many keys it changed.

        A row takes effect unless the store already holds a later event for its key; of equals, the last.
        """
        view, newest = _valid(table), dict[bytes, tuple[int, Mapping[str, Any]]]()
        for key, event_ts, features in rows:
            held = newest.setdefault(orjson.dumps(key), (event_ts, features))
            if event_ts >= held[0]:
                newest[orjson.dumps(key)] = (event_ts, features)
        return self.publish(view, packed(newest))

    @abstractmethod
    def publish(self, table: str, batch: Batch) -> int:
        """Write packed rows, and what is beside them, unless later ones are held; return how many took effect.

        Rows of one chunk take effect together; what was written before a failure stays written.
        """

    def read(self, table: str, keys: Sequence[Key]) -> list[tuple[int, dict[str, Any]] | None]:
        """For each key, in order: (event time in microseconds, features), or None. Safe from any thread."""
        (rows,) = self.fetch([(_valid(table), [orjson.dumps(key) for key in keys])])
        return [None if row is None else self._named(row) for row in rows]

    def reader(self, reads: Sequence[TableRead]) -> Reader:
        """A compiled read of some features of some tables at once."""
        return Reader(self, reads)

    def rows(self, table: str) -> Iterator[tuple[Key, int, dict[str, Any]]]:
        """Every row the table holds as (key, event time, features), a chunk in memory at a time.

        A row written meanwhile may be seen old, new, or in Redis twice; a row at rest is seen.
        """
        for key, row in self._scan(_valid(table)):
            yield tuple(orjson.loads(key)), *self._named(row)

    def count(self, table: str) -> int:
        """How many keys the table holds; 0 for one never written."""
        return self._count(_valid(table))

    def layout(self, layout_id: bytes) -> Layout:
        """The layout of that id, as the store holds it."""
        known = self._layouts.get(layout_id)
        if known is None:
            known = self._layouts[layout_id] = Layout.from_json(self._layout(layout_id))
        return known

    def _named(self, row: bytes) -> tuple[int, dict[str, Any]]:
        layout = self.layout(row[16:24])
        event_ts, values = layout.reading(layout.names).read(row)
        return event_ts, dict(zip(layout.names, values, strict=True))

    @abstractmethod
    def close(self) -> None:
        """Give connections back; the store is not usable afterwards."""

    @abstractmethod
    def answers(self) -> AbstractContextManager[None]:
        """A block in which a store that does not answer raises OnlineStoreUnavailableError."""

    @abstractmethod
    def probe(self) -> None:
        """Ask for nothing; raises OnlineStoreUnavailableError where reads would, or would find a store that is gone."""

    @abstractmethod
    def fetch(self, asked: Sequence[tuple[str, Sequence[bytes]]]) -> Sequence[Sequence[bytes | None]]:
        """The packed rows of the keys of each table, all in one round trip.

        Tables whose keys are the same object are read together.
        """

    @abstractmethod
    def clear(self, table: str) -> None:
        """Forget every packed row of the table."""

    @abstractmethod
    def _scan(self, table: str) -> Iterator[tuple[bytes, bytes]]: ...

    @abstractmethod
    def _count(self, table: str) -> int: ...

    @abstractmethod
    def _layout(self, layout_id: bytes) -> bytes: ...


def packed(newest: Mapping[bytes, tuple[int, Mapping[str, Any]]]) -> Batch:
    """Rows given as mappings, packed: those of the same features share a layout."""
    alike: dict[tuple[str, ...], dict[bytes, tuple[int, Values]]] = {}
    for key, (event_ts, features) in newest.items():
        values = tuple(None if _unsayable(value) else value for value in features.values())
        alike.setdefault(tuple(features), {})[key] = event_ts, values
    layouts: list[Layout] = []
    keys: list[bytes] = []
    rows: list[bytes] = []
    for names, group in alike.items():
        layouts.append(layout := Layout.of(names, [values for _, values in group.values()]))
        keys += group
        rows += [layout.encode(event_ts, NEVER, values) for event_ts, values in group.values()]
    return Batch(layouts, keys, rows)


def _unsayable(value: Any) -> bool:
    """NaN and the infinities, for which JSON has no word."""
    return isinstance(value, float) and not math.isfinite(value)


def _valid(table: str) -> str:
    if not TABLE.fullmatch(table):
        raise TableNameError.of(table)
    return table


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is now; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _older(row: bytes, held: bytes) -> bool:
    return TIMES.unpack_from(row) < TIMES.unpack_from(held)


@lru_cache(maxsize=256)
def _by_keys(tables: int, keys: int) -> str:
    """The rows of some views, a column each, for some keys, a row each in their order.

    Half the time of `key IN (...)` for each view: nothing is sorted, nothing told twice. The outer side of a left join
    is walked as it is given, and there is a row for each key.
    """
    columns = ", ".join(f"v{at}.value" for at in range(1, tables + 1))
    views = [f"packed_rows v{at} ON v{at}.view = ?{at} AND v{at}.key = keys.key" for at in range(1, tables + 1)]
    asked = ", ".join(f"(?{tables + number})" for number in range(1, keys + 1))
    return f"WITH keys(key) AS (VALUES {asked}) SELECT {columns} FROM keys LEFT JOIN {' LEFT JOIN '.join(views)}"  # noqa: S608  numbers


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


class SqlitePackedStore(PackedStore):
    """Two tables of all views, in WAL mode: readers never wait, writers take turns, a chunk each."""

    CHUNK = 10_000
    KEYS, TABLES = 1_000, 32  # of one statement; SQLite's limits are 32,766 and 64
    CACHE_KIB = 64 * 1024  # at most; a page changed twice in a chunk is written once
    WAL_PAGES = 8_192  # 32 MiB: a publication goes into the database in a few large strokes
    PATIENCE = 30.0  # seconds to wait for another writer
    SCHEMA = (
        (
            "CREATE TABLE IF NOT EXISTS packed_rows (view TEXT, key BLOB, event_ts INTEGER NOT NULL, "
            "created_ts INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (view, key)) WITHOUT ROWID"
        ),
        "CREATE TABLE IF NOT EXISTS packed_layouts (id BLOB PRIMARY KEY, layout BLOB NOT NULL) WITHOUT ROWID",
    )

    # What the file may be instead of a database that answers: held by another, gone, unreadable, another thing.
    AWAY = (
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
    )  # fmt: skip

    def __init__(self, path: Path, within: float | None = None) -> None:
        super().__init__()
        self._path = path
        self._patience = self.PATIENCE if within is None else within
        self._idle: deque[sqlite3.Connection] = deque()
        if within is None:
            self._make(path)
        self._file = _identity(path)
        if within is not None:
            self.probe()

    def _make(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # SQLite does not wait its turn to enter WAL mode: first openers at once would meet "database is locked".
        with FileLock(f"{path}.lock"), self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for statement in self.SCHEMA:
                connection.execute(statement)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that no other thread holds meanwhile; as many exist as were ever needed at once."""
        with self.answers():
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect()
            try:
                yield connection
            finally:
                self._idle.append(connection)

    @contextmanager
    def answers(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in self.AWAY:
                raise OnlineStoreUnavailableError.of(str(self._path), error) from error
            raise

    def probe(self) -> None:
        """A file that was replaced is gone too: open connections would go on reading what nobody publishes to."""
        if self._file is None or _identity(self._path) != self._file:
            raise OnlineStoreUnavailableError.of(str(self._path), FileNotFoundError("it is not there, or another one"))
        with self._connection() as connection:
            named = "SELECT count(*) FROM sqlite_master WHERE name IN ('packed_rows', 'packed_layouts')"
            (tables,) = connection.execute(named).fetchone()
            if tables != len(self.SCHEMA):
                raise OnlineStoreUnavailableError.of(str(self._path), LookupError("it has no packed rows"))
            connection.execute("SELECT 1 FROM packed_rows LIMIT 1").fetchone()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=self._patience, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA cache_size = -{self.CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {self.WAL_PAGES}")
        return connection

    @contextmanager
    def _alone(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer is in meanwhile."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def publish(self, table: str, batch: Batch) -> int:
        return sum(self._write(table, batch, slice(at, at + self.CHUNK)) for at in range(0, len(batch), self.CHUNK))

    def _write(self, table: str, batch: Batch, part: slice) -> int:
        keys, rows = batch.keys[part], batch.rows[part]
        with self._alone() as connection:
            layouts = [(layout.id, layout.json) for layout in batch.layouts]
            connection.executemany("INSERT OR IGNORE INTO packed_layouts VALUES (?, ?)", layouts)
            (held,) = self._rows(connection, [table], keys)
            newer = [
                at for at, (row, old) in enumerate(zip(rows, held, strict=True)) if old is None or not _older(row, old)
            ]
            newer.sort(key=keys.__getitem__)
            changed = ((table, keys[at], *TIMES.unpack_from(rows[at]), rows[at]) for at in newer)
            connection.executemany("REPLACE INTO packed_rows VALUES (?, ?, ?, ?, ?)", changed)
            if batch.beside is not None:
                connection.execute(batch.beside.table)
                columns = [column[part] for column in batch.beside.columns]
                newer.sort(key=columns[0].__getitem__)
                cells = [map(column.__getitem__, newer) for column in columns]
                connection.executemany(batch.beside.statement, zip(*cells, strict=True))
        return len(newer)

    def fetch(self, asked: Sequence[tuple[str, Sequence[bytes]]]) -> Sequence[Sequence[bytes | None]]:
        """Tables of the same keys are read by one statement."""
        alike: dict[int, list[int]] = {}
        for place, (_, keys) in enumerate(asked):
            alike.setdefault(id(keys), []).append(place)
        answers: list[Sequence[bytes | None]] = [()] * len(asked)
        with self._connection() as connection:
            for places in chain.from_iterable(_chunks(some, self.TABLES) for some in alike.values()):
                columns = self._rows(connection, [asked[place][0] for place in places], asked[places[0]][1])
                for place, column in zip(places, columns, strict=True):
                    answers[place] = column
        return answers

    def _rows(
        self, connection: sqlite3.Connection, tables: Sequence[str], keys: Sequence[bytes]
    ) -> Sequence[Sequence[bytes | None]]:
        found: list[tuple[bytes | None, ...]] = []
        for chunk in _chunks(keys, self.KEYS):
            found += connection.execute(_by_keys(len(tables), len(chunk)), (*tables, *chunk)).fetchall()
        return [[row[at] for row in found] for at in range(len(tables))]

    def _scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """In the order of the keys; each chunk is a read of its own, so that no reader holds back a checkpoint."""
        after = b""
        query = "SELECT key, value FROM packed_rows WHERE view = ? AND key > ? ORDER BY key LIMIT ?"
        while True:
            with self._connection() as connection:
                chunk = connection.execute(query, (table, after, self.CHUNK)).fetchall()
            yield from chunk
            if len(chunk) < self.CHUNK:
                return
            after = chunk[-1][0]

    def clear(self, table: str) -> None:
        with self._connection() as connection:
            connection.execute("DELETE FROM packed_rows WHERE view = ?", (table,))

    def _count(self, table: str) -> int:
        with self._connection() as connection:
            (count,) = connection.execute("SELECT count(*) FROM packed_rows WHERE view = ?", (table,)).fetchone()
        return int(count)

    def _layout(self, layout_id: bytes) -> bytes:
        with self._connection() as connection:
            (said,) = connection.execute("SELECT layout FROM packed_layouts WHERE id = ?", (layout_id,)).fetchone()
        return bytes(said)


class RedisPackedStore(PackedStore):
    """A hash per view; a chunk is compared and set in one script, which the server runs alone.

    A whole publication is not one transaction, which would stall the readers of a single-threaded server; one cut
    short is made good by repeating it. A script is sent whole each time: a server that was restarted has none.
    """

    # ARGV: rows, layouts, fields; each layout's id and text; the fields; of each row its key, the row, its values.
    # Lua numbers are doubles: comparing the halves keeps 64-bit microseconds exact.
    KEEP_NEWEST = """
    local rows, layouts, fields = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
    local first = 4 + 2 * layouts + fields
    local width = 2 + fields
    local keys, changed = {}, {}
    for i = 1, rows do keys[i] = ARGV[first + (i - 1) * width] end
    local held = redis.call('HMGET', KEYS[1], unpack(keys))
    local unpack_times = struct.unpack
    local beside = {}
    for j = 1, fields do beside[2 * j] = ARGV[3 + 2 * layouts + j] end
    for i = 1, rows do
        local at = first + (i - 1) * width
        local newer = true
        if held[i] then
            local a, b, c, d = unpack_times('>i4I4i4I4', ARGV[at + 1])
            local e, f, g, h = unpack_times('>i4I4i4I4', held[i])
            if a ~= e then newer = a > e
            elseif b ~= f then newer = b > f
            elseif c ~= g then newer = c > g
            else newer = d >= h end
        end
        if newer then
            changed[#changed + 1] = keys[i]
            changed[#changed + 1] = ARGV[at + 1]
            if fields > 0 then
                beside[1] = KEYS[2 + i]
                for j = 1, fields do beside[2 * j + 1] = ARGV[at + 1 + j] end
                redis.call('HSET', unpack(beside))
            end
        end
    end
    if #changed > 0 then
        redis.call('HSET', KEYS[2], unpack(ARGV, 4, 3 + 2 * layouts))
        redis.call('HSET', KEYS[1], unpack(changed))
    end
    return #changed / 2
    """
    CHUNK = 50  # a third of a millisecond of the server; more at once costs it more a row, as Lua keeps all arguments
    LAYOUTS = "mlops:layouts"

    def __init__(self, url: str, within: float | None = None) -> None:
        super().__init__()
        self._wire = RedisWire(url, None if within is None else Patience.short(within))

    @contextmanager
    def answers(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OnlineStoreUnavailableError.of(self._wire.where, error) from error

    def probe(self) -> None:
        self._ask("PING")

    def close(self) -> None:
        self._wire.close()

    def publish(self, table: str, batch: Batch) -> int:
        parts = [slice(at, at + self.CHUNK) for at in range(0, len(batch), self.CHUNK)]
        with self.answers():
            return sum(self._wire.ask(lambda: (packet(self._script(table, batch, part)) for part in parts)))

    def _script(self, table: str, batch: Batch, part: slice) -> tuple[Any, ...]:
        keys, feast = batch.keys[part], batch.beside or FeastHashes([], [], [])
        layouts = [said for layout in batch.layouts for said in (layout.id, layout.json)]
        hashes = [self._hash(table), self.LAYOUTS, *feast.hashes[part]]
        counts = [len(keys), len(batch.layouts), len(feast.fields)]
        rows = zip(keys, batch.rows[part], *(column[part] for column in feast.columns), strict=True)
        given = (*hashes, *counts, *layouts, *feast.fields)
        return ("EVAL", self.KEEP_NEWEST, len(hashes), *given, *chain.from_iterable(rows))

    def fetch(self, asked: Sequence[tuple[str, Sequence[bytes]]]) -> Sequence[Sequence[bytes | None]]:
        """Bytes that say the keys are made once for all tables of the same keys."""
        distinct = {id(keys): keys for _, keys in asked}
        said = {
            which: b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in keys]) for which, keys in distinct.items()
        }
        commands = [_hmget(table, len(keys)) + said[id(keys)] for table, keys in asked if keys]
        whole = b"".join(commands), len(commands)
        with self.answers():
            answers = iter(self._wire.ask(lambda: [whole]))
        return [next(answers) if keys else [] for _, keys in asked]

    def _scan(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        cursor = b"0"
        while True:
            cursor, found = self._ask("HSCAN", self._hash(table), cursor, "COUNT", 1_000)
            yield from zip(found[::2], found[1::2], strict=True)
            if cursor == b"0":
                return

    def clear(self, table: str) -> None:
        self._ask("UNLINK", self._hash(table))

    def _count(self, table: str) -> int:
        return int(self._ask("HLEN", self._hash(table)))

    def _layout(self, layout_id: bytes) -> bytes:
        return bytes(self._ask("HGET", self.LAYOUTS, layout_id))

    def _ask(self, *command: Any) -> Any:
        with self.answers():
            return self._wire.ask(lambda: [packet(command)])[0]

    @staticmethod
    def _hash(table: str) -> str:
        return f"mlops:rows:{table}"


@lru_cache(maxsize=1024)
def _hmget(table: str, keys: int) -> bytes:
    """What Redis is told before the keys."""
    name = RedisPackedStore._hash(table).encode()  # noqa: SLF001
    return b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n" % (2 + keys, len(name), name)
