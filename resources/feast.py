"""Feast as a resource: its registry, and rows published online in its own format and packed beside it.

    <home>/feast/registry.db, online_store.db (Feast's)      packed.db (`resources.packed_store`)

`feature_assets/feature_store.yaml` configures it, for the command line and for us alike. The rule that must never
break: an older event never replaces a newer one, and what plain Feast reads is what the endpoint reads.

Importing Feast takes ten seconds: it is imported when the store is first used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from filelock import FileLock
from pydantic import PrivateAttr

from resources.environment import PROJECT, home
from resources.packed_store import PackedStore, Row, online_store_url

if TYPE_CHECKING:
    import feast
    import polars as pl

REPOSITORY = PROJECT / "feature_assets"


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
    """The feature store; `online_store` is the URL of another online store than the environment's.

    Writers of one machine take turns (a lock under the home directory); across machines the packed store
    alone keeps the newest row by itself.
    """

    online_store: str | None = None

    _store: "feast.FeatureStore | None" = PrivateAttr(default=None)
    _packed: PackedStore | None = PrivateAttr(default=None)

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

        One at a time on this machine: concurrent registrations in Feast lose changes (feast #6663).
        """
        with self._alone("apply"):
            applied, registry = _state("applied.sha256"), _state("registry.db")
            wanted = _fingerprint(objects)
            if registry.exists() and applied.exists() and applied.read_text() == wanted + _digest(registry):
                return False
            if registry.exists():
                self.store().refresh_registry()  # Feast writes back what it has cached, however old
            else:
                self._store = None  # a registry that was deleted is made anew with its store
            self.store().apply(list(objects))
            applied.write_text(wanted + _digest(registry))
            return True

    def write_online(self, table: str, frame: "pl.DataFrame", *, republish: bool = False) -> Published:
        """Publish the newest row per key of `frame` (join keys, `event_timestamp`, features) to view `table`.

        Rows that the packed store already holds, or holds a newer event for, are not written again;
        `republish` writes the held ones too, to fill a store that was emptied. Rows with a null key
        are of nothing and are left out; a NaN or an infinity is published as null. Raises UnknownViewError.
        """
        view = self._view(table)
        columns = [*view.join_keys, "event_timestamp", *(feature.name for feature in view.features)]
        newest = finite(newest_per_key(frame.select(columns), view.join_keys))
        with self._alone("online"):
            rows = packed_rows(newest, view.join_keys)
            held = self.packed().read(table, [key for key, _, _ in rows])
            wanted = [_takes_effect(row, old, republish) for row, old in zip(rows, held, strict=True)]
            if any(wanted):
                # Feast first: if we are cut off in between, the packed store still asks for these rows next time.
                self._write_feast(view, newest.filter(wanted))
                self.packed().write(table, [row for row, want in zip(rows, wanted, strict=True) if want])
        return Published(keys=len(rows), written=sum(wanted))

    def read_online(self, table: str, keys: Sequence[tuple[Any, ...]], features: Sequence[str]) -> list[dict[str, Any]]:
        """The features of each key through plain Feast, in order; None where it holds nothing. For checks."""
        if not keys:
            return []
        join_keys = self._view(table).join_keys
        answer = self.store().get_online_features(
            features=[f"{table}:{name}" for name in features],
            entity_rows=[dict(zip(join_keys, key, strict=True)) for key in keys],
        )
        columns = answer.to_dict()
        return [{name: columns[name][row] for name in features} for row in range(len(keys))]

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

    def _write_feast(self, view: "feast.FeatureView", rows: "pl.DataFrame") -> None:
        from feast.utils import _convert_arrow_to_proto

        from resources.polars_offline_store import arrow

        join_keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
        protos = _convert_arrow_to_proto(arrow(rows), view, join_keys)
        # The rows were compared before; in Redis Feast would again, and drop a correction of the same event time.
        config = self._config(skip_dedup=True)
        provider = self.store()._get_provider()  # noqa: SLF001  Feast's public way goes through pandas, and loses nulls
        provider.online_write_batch(config, view, protos, progress=None)


def newest_per_key(frame: "pl.DataFrame", join_keys: Sequence[str]) -> "pl.DataFrame":
    """The row of the latest `event_timestamp` of each key, the last of equals."""
    whole = frame.drop_nulls([*join_keys, "event_timestamp"])
    return whole.sort("event_timestamp", maintain_order=True).unique(join_keys, keep="last", maintain_order=True)


def finite(frame: "pl.DataFrame") -> "pl.DataFrame":
    """NaN and infinity as null: JSON has no other word for them, and both stores must say the same."""
    import polars as pl
    from polars import selectors

    floats = selectors.float()
    return frame.with_columns(pl.when(floats.is_finite()).then(floats).name.keep())


def packed_rows(frame: "pl.DataFrame", join_keys: Sequence[str]) -> list[Row]:
    """The frame's rows as the packed store takes them."""
    keys = frame.select(join_keys).rows()
    times = frame["event_timestamp"].dt.epoch("us").to_list()
    features = frame.drop(*join_keys, "event_timestamp").to_dicts()
    return list(zip(keys, times, features, strict=True))


def _takes_effect(row: Row, held: tuple[int, dict[str, Any]] | None, republish: bool) -> bool:
    import orjson

    _, event_ts, features = row
    if held is None or event_ts > held[0]:
        return True
    # As JSON, since that is what is held: a time is text there, a NaN null.
    return event_ts == held[0] and (republish or orjson.dumps(features) != orjson.dumps(held[1]))


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
