"""Feast as a resource: its registry, and rows published online in its own format and packed beside it.

    <home>/feast/registry.db      online_store.db, or Redis: Feast's format and `resources.online.packed_store`'s

`feature_assets/feature_store.yaml` configures it, for the command line and for us alike. The rule that must never
break: an older event never replaces a newer one, and what plain Feast reads is what the endpoint reads.

Importing Feast takes ten seconds: it is imported when the store is first used.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from filelock import FileLock
from pydantic import PrivateAttr

from resources.environment import PROJECT, home
from resources.online.packed_row import TIMES
from resources.online.packed_store import PackedStore, online_store_url

if TYPE_CHECKING:
    import feast
    import polars as pl

    from resources.online.agreement import Difference
    from resources.online.feast_store import NewestWins
    from resources.online.rows import OnlineView

REPOSITORY = PROJECT / "feature_assets"
ROWS_AT_ONCE = 20_000  # of a publication: what a kill may cost, and what is in memory twice
KEYS_AT_ONCE = 1_000  # of a comparison of the two formats
Progress = Callable[[int, int], object]
log = logging.getLogger(__name__)


class UnknownViewError(LookupError):
    """A view was published or read that Feast's registry does not hold."""

    @classmethod
    def of(cls, table: str, known: Sequence[str]) -> Self:
        return cls(
            f"Feast's registry has no feature view {table!r} (known: {', '.join(sorted(known)) or 'none'}). "
            "Register it: cd feature_assets && feast apply."
        )


@dataclass(frozen=True)
class Published:
    """Of `keys` keys offered, the newest rows of `written` were new to the online stores."""

    keys: int
    written: int


class FeastResource(dg.ConfigurableResource[Any]):
    """The feature store; `online_store` is the URL of another online store than the environment's."""

    online_store: str | None = None

    _store: "feast.FeatureStore | None" = PrivateAttr(default=None)
    _packed: PackedStore | None = PrivateAttr(default=None)
    _views: "dict[str, OnlineView]" = PrivateAttr(default_factory=dict)

    def store(self) -> "feast.FeatureStore":
        """Feast's own store, for everything that Feast does."""
        if self._store is None:
            from feast import FeatureStore

            self._store = FeatureStore(config=self._config())
        return self._store

    def packed(self) -> PackedStore:
        """The same rows as the endpoint reads them."""
        if self._packed is None:
            self._packed = PackedStore.open(self._url)
        return self._packed

    def apply(self, objects: Sequence[Any]) -> bool:
        """Register Feast objects; tells whether anything had changed. Objects no longer given stay registered.

        Concurrent registrations lose nothing: those of this machine take turns, and what another process registers
        meanwhile is kept. Raises RegistryUnreachableError.
        """
        with self._alone("apply"):
            applied, registry = _state("applied.sha256"), _state("registry.db")
            wanted = _fingerprint(objects)
            if registry.exists() and applied.exists() and applied.read_text() == wanted + _digest(registry):
                return False
            if not registry.exists():
                self._store = None  # a registry that was deleted is made anew with its store
            self._apply(objects)
            self._views.clear()
            applied.write_text(wanted + _digest(registry))
            return True

    def _apply(self, objects: Sequence[Any]) -> None:
        """Where somebody past our lock changes the same object at the same time, the later of the two wins."""
        from resources.feast_home import StaleRegistryError

        for last in (False, False, True):
            self.store().refresh_registry()  # Feast writes back what it has cached, however old
            try:
                self.store().apply(list(objects))
                return
            except Exception as problem:
                self._store = None  # with what it had changed and could not write
                if last or not isinstance(problem, StaleRegistryError):
                    raise

    def write_online(
        self, table: str, frame: "pl.DataFrame", *, republish: bool = False, progress: Progress | None = None
    ) -> Published:
        """Publish the newest row per key of `frame` (join keys, `event_timestamp`, features) to view `table`.

        Rows that the store already holds, or holds a newer event for, are not written again; `republish` writes the
        held ones too, to fill a format that was emptied. A chunk is written whole, in both formats, so a publication
        that was cut off goes on where it was when it is repeated; `progress` is told the keys done and the keys in
        all after each. Rows with a null key are of nothing and are left out; a NaN or an infinity, also in an array,
        is published as null. Raises UnknownViewError, OnlineStoreUnavailableError.
        """
        view = self._online(table)
        newest = finite(newest_per_key(frame.select(_columns(view, frame)), view.join_keys, *_times(view, frame)))
        tell, written, done = progress or _logged(table), 0, 0
        for part in newest.iter_slices(ROWS_AT_ONCE):
            written += self._publish(view, part, republish)
            done += part.height
            tell(done, newest.height)
        return Published(keys=newest.height, written=written)

    def read_online(
        self, table: str, keys: Sequence[tuple[Any, ...]], features: Sequence[str], at: datetime | None = None
    ) -> list[dict[str, Any]]:
        """The features of each key through plain Feast, in order; None where it holds nothing. For checks.

        Feast's own clients see a value until its ttl is over; this sees what is held, or with `at` what they would
        have seen then.
        """
        if not keys:
            return []
        from resources.online.feast_store import reading_at

        view, store = self._online(table), self.store()
        with reading_at(at):
            answer = store.get_online_features(
                features=[f"{table}:{name}" for name in features],
                # Of a view without keys Feast counts the rows asked for by any name, and adds its own key.
                entity_rows=[dict(zip(view.join_keys, key, strict=True)) or {"all": ""} for key in keys],
            )
        columns = answer.to_dict()
        return [{name: columns[name][row] for name in features} for row in range(len(keys))]

    def empty_online(self, table: str) -> None:
        """Forget every row of view `table` in both formats. Readers find nothing until it is published again."""
        config, view = self.store().config, self._view(table)
        self._online_store().empty(config, view)

    def online_differences(self, table: str) -> "Iterator[Difference]":
        """Where the packed rows of a view and Feast's own format disagree: (key, feature, packed value, Feast's).

        Nothing, unless somebody wrote past this store. The feature `event_timestamp` stands for the time; Feast
        knows whole seconds of times, and so does this.
        """
        from resources.online.agreement import differences, feast_rows

        read = feast_rows(self.store(), self._view(table))
        rows = self.packed().rows(self._online(table).table)
        while some := list(islice(rows, KEYS_AT_ONCE)):
            yield from differences(some, read([key for key, _, _ in some]))

    @property
    def _url(self) -> str:
        return self.online_store or online_store_url()

    def _config(self, **online: Any) -> "feast.RepoConfig":
        import yaml
        from feast import RepoConfig

        options = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text())
        options["online_store"] |= {"url": self._url, **online}
        return RepoConfig(repo_path=REPOSITORY, **options)

    def _alone(self, what: str) -> FileLock:
        lock = _state(f"{what}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(lock)

    def _view(self, table: str) -> "feast.FeatureView":
        store = self.store()
        known = {view.name: view for view in store.list_feature_views(allow_cache=True)}
        if table not in known:
            known = {view.name: view for view in store.list_feature_views(allow_cache=False)}
        if table not in known:
            raise UnknownViewError.of(table, list(known))
        return known[table]

    def _online(self, table: str) -> "OnlineView":
        """What publishing a view takes, looked up once."""
        if table not in self._views:
            from resources.online.rows import OnlineView

            self._views[table] = OnlineView.of(self.store().config, self._view(table))
        return self._views[table]

    def _online_store(self) -> "NewestWins":
        return self.store()._get_provider().online_store  # noqa: SLF001  Feast has no public way to its store

    def _publish(self, view: "OnlineView", part: "pl.DataFrame", republish: bool) -> int:
        """Write the rows of `part` that the store does not hold; how many took effect."""
        from dataclasses import replace

        import polars as pl

        from resources.online.rows import beside_frame, packed_batch

        store, batch = self.packed(), packed_batch(view, part)
        (held,) = store.fetch([(view.table, batch.keys)])
        wanted = [republish or _takes_effect(row, old) for row, old in zip(batch.rows, held, strict=True)]
        if not any(wanted):
            return 0
        chosen = batch if all(wanted) else batch.only(wanted)
        rows = part if all(wanted) else part.filter(pl.Series(wanted))
        return store.publish(view.table, replace(chosen, beside=beside_frame(view, rows, store)))


def _columns(view: "OnlineView", frame: "pl.DataFrame") -> list[str]:
    return [*view.join_keys, *_times(view, frame), *view.features]


def _times(view: "OnlineView", frame: "pl.DataFrame") -> list[str]:
    """The columns by which rows of a key are told apart: the event time, and the created time where there is one."""
    created = view.created_timestamp
    return [view.event_timestamp, *([created] if created in frame.columns and created else [])]


def newest_per_key(frame: "pl.DataFrame", join_keys: Sequence[str], *times: str) -> "pl.DataFrame":
    """The row of the latest time of each key, the last of equals; of a view without keys, the latest of all."""
    whole = frame.drop_nulls([*join_keys, times[0]]).sort(times, maintain_order=True, nulls_last=False)
    return whole.unique(join_keys, keep="last", maintain_order=True) if join_keys else whole.tail(1)


def finite(frame: "pl.DataFrame") -> "pl.DataFrame":
    """NaN and infinity as null, and an array that holds one: JSON has no other word for them."""
    import polars as pl
    from polars import selectors

    floats = selectors.float()
    vectors = [name for name, dtype in frame.schema.items() if _is_vector(dtype)]
    whole = [pl.col(name).list.eval(pl.element().is_finite().fill_null(False)).list.all() for name in vectors]
    return frame.with_columns(
        pl.when(floats.is_finite()).then(floats).name.keep(),
        *(pl.when(good).then(pl.col(name)).alias(name) for name, good in zip(vectors, whole, strict=True)),
    )


def _is_vector(dtype: "pl.DataType") -> bool:
    import polars as pl

    return isinstance(dtype, pl.List) and dtype.inner.is_float()


def _takes_effect(row: bytes, held: bytes | None) -> bool:
    """Whether a packed row is news: not held as it is, and not older than what is held."""
    if held is None:
        return True
    return row != held and TIMES.unpack_from(row) >= TIMES.unpack_from(held)


def _logged(table: str) -> Progress:
    """A line per chunk of a publication that takes more than one."""

    def tell(done: int, total: int) -> None:
        if total > ROWS_AT_ONCE:
            log.info("%s: %d of %d keys published", table, done, total)

    return tell


def _state(name: str) -> Path:
    return home() / "feast" / name


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _fingerprint(objects: Sequence[Any]) -> str:
    """The same for objects that say the same, whenever they were made and in any order."""
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

    said = [[type(item).__name__, _timeless(MessageToDict(item.to_proto()))] for item in objects]
    return sha256("".join(sorted(json.dumps(part, sort_keys=True) for part in said)).encode()).hexdigest()


def _timeless(said: Any) -> Any:
    """Without the times at which Feast made or changed an object."""
    if isinstance(said, list):
        return [_timeless(item) for item in said]
    if isinstance(said, dict):
        times = ("createdTimestamp", "lastUpdatedTimestamp")
        return {name: _timeless(value) for name, value in said.items() if name not in times}
    return said
