"""Feast's online stores, on SQLite and Redis, in which the newest event wins and a ttl is honoured.

`feature_assets/feature_store.yaml` names them, so whatever writes through that configuration (`feast materialize`,
`push`, `write_to_online_store`, our own publications) writes Feast's own format and the packed rows of the endpoint in
one transaction. The rule that must never break: an older event never replaces a newer one, in whatever order they
arrive and however many write; of one event time the later created wins, then the later arrived.

Imported by Feast, when a configuration names it; hence Feast at the top.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

import redis
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _utc_now
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore, online_store_url
from resources.online.redis_wire import LONGEST_PAUSE, PAUSE, TRIES, RedisWire
from resources.online.rows import OnlineView, Proto, proto_batch, sqlite_schema, sqlite_table

Clock = Callable[[], datetime | None]
_clock: ContextVar[Clock] = ContextVar("_clock", default=_utc_now)


class UnsupportedOptionError(NotImplementedError):
    """An option of Feast's own store that a store with packed rows cannot honour."""

    @classmethod
    def of(cls, store: str, options: Sequence[str]) -> Self:
        return cls(
            f"online_store: {', '.join(options)} cannot be used with {store}, which keeps packed rows beside Feast's. "
            "Leave it out of feature_store.yaml, or name Feast's own store as `type`."
        )


@contextmanager
def reading_at(moment: datetime | None) -> Iterator[None]:
    """Values read in this block expire as of `moment`; with None they never do. Otherwise it is now."""
    token = _clock.set(lambda: moment)
    try:
        yield
    finally:
        _clock.reset(token)


def expire(response: Any, grouped_refs: Sequence[tuple[FeatureView, Sequence[str]]], at: int) -> None:
    """Null the values of `response` that are older than their view's ttl, and say so in their status.

    From place `at` on the response holds a vector per feature, in the order of the references; before it, what the
    caller gave.
    """
    now = _clock.get()()
    for view, features in grouped_refs:
        vectors = response.results[at : at + len(features)]
        at += len(features)
        ttl = getattr(view, "ttl", None)
        if now is not None and ttl and vectors:
            times = enumerate(vectors[0].event_timestamps)
            old = [place for place, time in times if time.ToDatetime(tzinfo=UTC) < now - ttl]
            for vector in vectors:
                _expire(vector, old)


def _expire(vector: Any, places: Sequence[int]) -> None:
    for place in places:
        if vector.statuses[place] == FieldStatus.PRESENT:
            vector.values[place].Clear()
            vector.statuses[place] = FieldStatus.OUTSIDE_MAX_AGE


class NewestWins:
    """What both stores do alike, in front of Feast's own class."""

    _packed: PackedStore | None = None

    def packed(self, config: RepoConfig) -> PackedStore:
        """The packed rows, in the same database."""
        if self._packed is None:
            self._packed = PackedStore.open(config.online_store.url)
        return self._packed

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Proto],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows in both formats, each unless a newer one of its key is held."""
        view, store = OnlineView.of(config, table), self.packed(config)
        store.publish(view.table, proto_batch(view, data, store))
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Proto],
        progress: Callable[[int], Any] | None,
    ) -> None:
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def _read_features_per_fv(self, config: RepoConfig, grouped_refs: Any, *rest: Any, **named: Any) -> None:
        response = _response(rest, named)
        given = len(response.results)
        super()._read_features_per_fv(config, grouped_refs, *rest, **named)  # type: ignore[misc]
        expire(response, grouped_refs, given)

    async def _read_features_per_fv_async(
        self, config: RepoConfig, grouped_refs: Any, *rest: Any, **named: Any
    ) -> None:
        response = _response(rest, named)
        given = len(response.results)
        await super()._read_features_per_fv_async(config, grouped_refs, *rest, **named)  # type: ignore[misc]
        expire(response, grouped_refs, given)

    def empty(self, config: RepoConfig, table: FeatureView) -> None:
        """Forget every row of a view, in both formats; the view itself stays."""
        raise NotImplementedError

    def _forget(self, config: RepoConfig, tables: Sequence[FeatureView]) -> None:
        for table in tables:
            self.packed(config).clear(OnlineView.of(config, table).table)


def _response(rest: Sequence[Any], named: dict[str, Any]) -> Any:
    return named["online_features_response"] if "online_features_response" in named else rest[2]


class PackedSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    """Feast's SQLite store at `path`, with packed rows in the same file."""

    type: Literal["resources.online.feast_store.PackedSqliteOnlineStore"] = (
        "resources.online.feast_store.PackedSqliteOnlineStore"
    )

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        refused = ("vector_enabled", "enable_openai_compatible_store")
        if asked := [name for name in refused if getattr(self, name)]:
            raise UnsupportedOptionError.of(type(self).__name__, asked)

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"


class PackedSqliteOnlineStore(NewestWins, SqliteOnlineStore):
    """Feast's tables, each in the order of its primary key: Feast's further index by entity key repeats that."""

    def _get_conn(self, config: RepoConfig) -> sqlite3.Connection:
        if not self._conn:
            self.packed(config)  # makes the file, and the mode in which readers do not wait
        return super()._get_conn(config)

    def packed(self, config: RepoConfig) -> PackedStore:
        if self._packed is None:
            self._packed = PackedStore.open(f"sqlite:///{self._get_db_path(config)}")
        return self._packed

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        *rest: Any,
        **named: Any,
    ) -> None:
        connection = self._get_conn(config)
        with unlocked(self._get_db_path(config)):
            for table in tables_to_keep:
                connection.execute(sqlite_schema(OnlineView.of(config, table)))
            super().update(config, tables_to_delete, tables_to_keep, *rest, **named)
            for table in tables_to_keep:
                connection.execute(f'DROP INDEX IF EXISTS "{sqlite_table(OnlineView.of(config, table))}_ek"')
        self._forget(config, tables_to_delete)

    def teardown(self, config: RepoConfig, *rest: Any, **named: Any) -> None:
        if self._packed is not None:
            self._packed.close()
            self._packed = None
        super().teardown(config, *rest, **named)

    def empty(self, config: RepoConfig, table: FeatureView) -> None:
        connection, view = self._get_conn(config), OnlineView.of(config, table)
        with unlocked(self._get_db_path(config)), connection:
            connection.execute(sqlite_schema(view))
            connection.execute(f'DELETE FROM "{sqlite_table(view)}"')  # noqa: S608  quoted
            connection.execute("DELETE FROM packed_rows WHERE view = ?", (view.table,))


@contextmanager
def unlocked(path: str) -> Iterator[None]:
    """SQLite's impatience, said as every other absence of a store is."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise OnlineStoreUnavailableError.of(path, error) from error
        raise


class PackedRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's Redis store, with packed rows in the same database, whose URL is `url`."""

    type: Literal["resources.online.feast_store.PackedRedisOnlineStore"] = (
        "resources.online.feast_store.PackedRedisOnlineStore"
    )
    url: str

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        plain = {"redis_type": "redis", "client": "redis", "key_ttl_seconds": None}
        if asked := [name for name, value in plain.items() if getattr(self, name) != value]:
            raise UnsupportedOptionError.of(type(self).__name__, asked)


class PackedRedisOnlineStore(NewestWins, RedisOnlineStore):
    """Feast's hashes, an entity each; what no writer ever wrote is not found, where Feast calls it present."""

    def _get_client(self, online_store_config: Any) -> Any:
        if not self._client:
            patient = Retry(ExponentialBackoff(cap=LONGEST_PAUSE, base=PAUSE), TRIES - 1)
            super()._get_client(online_store_config).set_retry(patient)
        return self._client

    def _read_hash_fields(self, config: RepoConfig, commands: Any) -> Any:
        with answering(config):
            return super()._read_hash_fields(config, commands)

    def _get_features_for_entity(self, values: Sequence[Any], feature_view: str, requested_features: list[str]) -> Any:
        if values[requested_features.index(f"_ts:{feature_view}")] is None:
            return None, None
        return super()._get_features_for_entity(values, feature_view, requested_features)

    def delete_table(self, config: RepoConfig, table: FeatureView) -> None:
        with answering(config):
            super().delete_table(config, table)
        self._forget(config, [table])

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], *rest: Any, **named: Any) -> None:
        super().teardown(config, tables, *rest, **named)
        self._forget(config, tables)

    def empty(self, config: RepoConfig, table: FeatureView) -> None:
        self.delete_table(config, table)


@contextmanager
def answering(config: RepoConfig) -> Iterator[None]:
    """redis-py's impatience, said as every other absence of a store is."""
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise OnlineStoreUnavailableError.of(RedisWire(config.online_store.url).where, error) from error


class HomeOnlineStoreConfig:
    """Becomes the configuration of the environment's online store, SQLite or Redis, at `url`.

    Feast's yaml knows no default for a variable that is unset, so it names this class instead of an address. Other
    `options` are Feast's own.
    """

    def __new__(cls, url: str | None = None, **options: Any) -> FeastConfigBaseModel:
        options.pop("type", None)  # this class, as the yaml names it
        found = url or online_store_url()
        where = urlsplit(found)
        if where.scheme in ("redis", "rediss"):
            return PackedRedisOnlineStoreConfig(url=found, connection_string=connection_string(where), **options)
        path = Path(found.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return PackedSqliteOnlineStoreConfig(path=str(path), **options)


def connection_string(where: SplitResult) -> str:
    """A Redis URL in Feast's own words."""
    parameters = {
        "db": where.path.strip("/") or "0",
        "ssl": "true" if where.scheme == "rediss" else None,
        "username": where.username,
        "password": where.password,
    }
    given = [f"{name}={value}" for name, value in parameters.items() if value]
    return ",".join([f"{where.hostname}:{where.port or 6379}", *given])
