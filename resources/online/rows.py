"""Rows of a feature view on their way online: packed for the endpoint, and beside that in Feast's own format.

Both are made of the same values: a frame's columns where a table is published in bulk, Feast's protobuf objects where
a Feast client writes. The rule that must never break: the bytes are those that Feast would have written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson

from resources.online import feast_wire, packed_columns
from resources.online.packed_row import EPOCH, MICROSECOND, NEVER, Layout, moment
from resources.online.packed_store import Batch, FeastHashes, FeastStatement, PackedStore, RedisPackedStore

if TYPE_CHECKING:
    import feast
    import polars as pl

    Numbers = np.ndarray[Any, np.dtype[Any]]

PROJECT_NAME = "mlops_assets"
SMALLEST, LARGEST = 1e-4, 1e16  # of the floats that Python says without an exponent
TEXTS = ("STRING", "INT32", "INT64", "DOUBLE", "FLOAT", "BOOL")
Proto = tuple[Any, Mapping[str, Any], datetime, datetime | None]


@dataclass(frozen=True)
class OnlineView:
    """What publishing a feature view takes: `keys` and `features` give the name of Feast's type by column."""

    project: str
    name: str
    keys: dict[str, str]
    features: dict[str, str]
    event_timestamp: str
    created_timestamp: str | None
    has_entities: bool

    @classmethod
    def of(cls, config: feast.RepoConfig, view: feast.FeatureView) -> Self:
        from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_NAME
        from feast.infra.online_stores.helpers import compute_versioned_name

        source = getattr(view, "batch_source", None)
        return cls(
            project=config.project,
            name=compute_versioned_name(view, config.registry.enable_online_feature_view_versioning),
            # Feast adds the column of a view without entities when it is registered, if it infers anything then.
            keys={column.name: column.dtype.to_value_type().name for column in view.entity_columns}
            or {DUMMY_ENTITY_ID: "STRING"},
            features={feature.name: feature.dtype.to_value_type().name for feature in view.features},
            event_timestamp=getattr(source, "timestamp_field", None) or "event_timestamp",
            created_timestamp=getattr(source, "created_timestamp_column", None) or None,
            has_entities=list(view.entities) not in ([], [DUMMY_ENTITY_NAME]),
        )

    @property
    def table(self) -> str:
        """The packed table: Feast's projects share a store, and the endpoint knows one only."""
        return self.name if self.project == PROJECT_NAME else f"{self.project}:{self.name}"

    @property
    def join_keys(self) -> list[str]:
        """In the order of a packed key; none for a view of one row."""
        return list(self.keys) if self.has_entities else []

    @cached_property
    def layout(self) -> Layout:
        return packed_columns.layout_of(self.features)


def packed_batch(view: OnlineView, frame: pl.DataFrame) -> Batch:
    """The frame's rows packed; each key comes once."""
    event_ts, created = _times(view, frame)
    keys = [orjson.dumps(key) for key in frame.select(view.join_keys).rows()] if view.join_keys else [b"[]"]
    columns = [frame[name] for name in view.features]
    return Batch([view.layout], keys, packed_columns.pack(view.layout, columns, event_ts, created))


def beside_frame(view: OnlineView, frame: pl.DataFrame, store: PackedStore) -> FeastHashes | FeastStatement:
    """The frame's rows in Feast's format for that store."""
    event_ts, created = _times(view, frame)
    entity_keys = feast_wire.entity_keys({name: (_key(frame, name), kind) for name, kind in view.keys.items()})
    values = [feast_wire.values(frame[name], kind) for name, kind in view.features.items()]
    if isinstance(store, RedisPackedStore):
        return _hashes(view, entity_keys, values, event_ts)
    texts = [_column_texts(frame[name], kind) for name, kind in view.features.items()]
    return _statement(view, entity_keys, values, texts, event_ts, created)


def proto_batch(view: OnlineView, data: Iterable[Proto], store: PackedStore) -> Batch:
    """Rows as a Feast client hands them over, the newest of each key, with Feast's format beside."""
    from feast.infra.key_encoding_utils import serialize_entity_key

    newest: dict[bytes, tuple[tuple[int, int], Any, Mapping[str, Any]]] = {}
    for entity_key, values, event, created in data:
        times = _us(event), NEVER if created is None else _us(created)
        key = serialize_entity_key(entity_key, entity_key_serialization_version=3)
        if key not in newest or times >= newest[key][0]:
            newest[key] = times, entity_key, values
    keys = [_packed_key(view, entity_key) for _, entity_key, _ in newest.values()]
    rows = [view.layout.encode(*times, _values(view, values)) for times, _, values in newest.values()]
    return Batch([view.layout], keys, rows, _beside_protos(view, newest, store))


def _beside_protos(
    view: OnlineView, newest: Mapping[bytes, tuple[tuple[int, int], Any, Mapping[str, Any]]], store: PackedStore
) -> FeastHashes | FeastStatement:
    from feast.infra.online_stores.helpers import extract_text_and_num
    from feast.protos.feast.types.Value_pb2 import Value

    # A row is replaced whole: a feature that it does not have is null, and no older value shines through.
    columns = [[values.get(name) or Value() for _, _, values in newest.values()] for name in view.features]
    values = [[value.SerializeToString() for value in column] for column in columns]
    event_ts, created = np.array([times for times, _, _ in newest.values()], dtype=np.int64).reshape(-1, 2).T
    if isinstance(store, RedisPackedStore):
        return _hashes(view, list(newest), values, event_ts)
    texts = [[extract_text_and_num(value, compute_num=False)[0] for value in column] for column in columns]
    return _statement(view, list(newest), values, texts, event_ts, created)


def _hashes(
    view: OnlineView, entity_keys: Sequence[bytes], values: list[list[bytes]], event_ts: Numbers
) -> FeastHashes:
    from feast.infra.online_stores.helpers import _mmh3

    project = view.project.encode()
    fields = [f"_ts:{view.name}".encode(), *(_mmh3(f"{view.name}:{name}") for name in view.features)]
    return FeastHashes([key + project for key in entity_keys], fields, [feast_wire.timestamps(event_ts), *values])


def _statement(
    view: OnlineView,
    entity_keys: Sequence[bytes],
    values: list[list[bytes]],
    texts: list[list[str | None]],
    event_ts: Numbers,
    created: Numbers,
) -> FeastStatement:
    event, made = _sqlite_times(event_ts), [None if us == NEVER else us for us in created.tolist()]
    told = made if not any(made) else [us and second for us, second in zip(made, _sqlite_times(created), strict=True)]
    cells = [cell for column, text in zip(values, texts, strict=True) for cell in (column, text)]
    return FeastStatement(sqlite_schema(view), sqlite_upsert(view), [entity_keys, event, told, *cells])


def sqlite_upsert(view: OnlineView) -> str:
    """All features of a row in one statement: its key, its times, then of each feature value and text."""
    quoted = [name.replace("'", "''") for name in view.features]
    rows = [f"(?1, '{name}', ?{4 + 2 * at}, ?{5 + 2 * at}, ?2, ?3)" for at, name in enumerate(quoted)]
    columns = "(entity_key, feature_name, value, value_text, event_ts, created_ts)"
    return f'REPLACE INTO "{sqlite_table(view)}" {columns} VALUES {", ".join(rows)}'  # noqa: S608  quoted


def sqlite_schema(view: OnlineView) -> str:
    """Feast's columns, in the order of the primary key: Feast's own table holds each key three times."""
    return (
        f'CREATE TABLE IF NOT EXISTS "{sqlite_table(view)}" (entity_key BLOB, feature_name TEXT, value BLOB, '
        "value_text TEXT, vector_value BLOB, event_ts timestamp, created_ts timestamp, "
        "PRIMARY KEY (entity_key, feature_name)) WITHOUT ROWID"
    )


def sqlite_table(view: OnlineView) -> str:
    """Feast's table of the view, quoted as Feast quotes it."""
    return f"{view.project}_{view.name}".replace('"', '""')


def _sqlite_times(us: Numbers) -> list[int]:
    """Whole seconds as Feast's adapter makes them: of the UTC time, taken for local."""
    distinct, place = np.unique(us, return_inverse=True)
    seconds = np.array([int(moment(at).replace(tzinfo=None).timestamp()) for at in distinct.tolist()], dtype=np.int64)
    return seconds[place].tolist() if len(us) else []


def _times(view: OnlineView, frame: pl.DataFrame) -> tuple[Numbers, Numbers]:
    event_ts = packed_columns.epoch(frame[view.event_timestamp]).to_numpy()
    if view.created_timestamp is None or view.created_timestamp not in frame.columns:
        return event_ts, np.full(frame.height, NEVER)
    return event_ts, packed_columns.epoch(frame[view.created_timestamp]).fill_null(NEVER).to_numpy()


def _key(frame: pl.DataFrame, name: str) -> pl.Series:
    """A key column; Feast gives a view without entities one of its own, which is empty."""
    import polars as pl

    return frame[name] if name in frame.columns else pl.Series(name, [""] * frame.height)


def _column_texts(column: pl.Series, kind: str) -> list[str | None]:
    """What Feast's SQLite store shows of a value beside its bytes; nothing for times and lists."""
    import polars as pl

    if kind not in TEXTS:
        return [None] * len(column)
    if kind == "STRING":
        return column.cast(pl.String).to_list()
    if kind in ("DOUBLE", "FLOAT"):
        single = column.cast(pl.Float32) if kind == "FLOAT" else column
        return _float_texts(single.cast(pl.Float64))
    return [None if value is None else str(value) for value in column.to_list()]


def _float_texts(column: pl.Series) -> list[str | None]:
    """`str` of each; orjson says those of middling size with the same digits in a quarter of the time."""

    size, values = column.abs(), column.to_list()
    said: list[str | None] = list(orjson.dumps(values)[1:-1].decode().split(",")) if values else []
    alike = (size.is_between(SMALLEST, LARGEST, closed="left") | (size == 0)).fill_null(value=False)
    for place in alike.not_().arg_true().to_list():
        said[place] = _text(values[place])
    return said


def _text(value: float | None) -> str | None:
    return None if value is None else str(value)


def _us(at: datetime) -> int:
    """Microseconds since 1970; a time without a zone is UTC, as everywhere in Feast."""
    return ((at.replace(tzinfo=UTC) if at.tzinfo is None else at) - EPOCH) // MICROSECOND


def _packed_key(view: OnlineView, entity_key: Any) -> bytes:
    given = dict(zip(entity_key.join_keys, entity_key.entity_values, strict=True))
    return orjson.dumps([python_value(given[name]) for name in view.join_keys])


def _values(view: OnlineView, values: Mapping[str, Any]) -> list[Any]:
    return [python_value(values[name]) if name in values else None for name in view.features]


def python_value(value: Any) -> Any:
    """A protobuf `Value` as the packed store holds it: times as times, nothing for what is not finite."""
    from feast.type_map import feast_value_type_to_python_type

    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    read = PLAIN.get(kind)
    return feast_value_type_to_python_type(value) if read is None else read(getattr(value, kind))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _vector(value: Any) -> list[float] | None:
    return list(value.val) if all(map(math.isfinite, value.val)) else None


def _moment(seconds: int) -> datetime | None:
    """Of a pandas frame Feast takes a missing time for the smallest number there is."""
    return None if seconds == -(2**63) else moment(seconds * 1_000_000)


def _same(value: Any) -> Any:
    return value


PLAIN: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("bool_val", "int32_val", "int64_val", "string_val"), _same),
    **dict.fromkeys(("double_val", "float_val"), _finite),
    **dict.fromkeys(("double_list_val", "float_list_val"), _vector),
    "unix_timestamp_val": _moment,
}
