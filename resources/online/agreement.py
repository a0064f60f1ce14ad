"""Where the two online formats disagree: what the endpoint reads, beside what a Feast client reads.

Both are written in one step, so a difference means that somebody wrote Feast's format past our store, or that the
store lost something; publishing again with `republish` makes it good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from resources.online.packed_row import moment, to_json
from resources.online.rows import OnlineView, python_value

if TYPE_CHECKING:
    import feast

Packed = tuple[tuple[Any, ...], int, dict[str, Any]]
Difference = tuple[tuple[Any, ...], str, Any, Any]
FeastRow = tuple[datetime | None, Mapping[str, Any] | None]
Reading = Callable[[Sequence[tuple[Any, ...]]], Sequence[FeastRow]]


def feast_rows(store: feast.FeatureStore, view: feast.FeatureView) -> Reading:
    """A function of packed keys that gives (event time, protobuf values) as plain Feast holds them."""
    provider, online = store._get_provider(), OnlineView.of(store.config, view)  # noqa: SLF001  no public way
    return lambda keys: provider.online_read(store.config, view, entity_keys(online, keys))


def entity_keys(view: OnlineView, keys: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Feast's entity key of each packed key."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    given = [key if view.has_entities else ("",) for key in keys]
    columns = [
        python_values_to_proto_values([_value(part, kind) for part in column], getattr(ValueType, kind))
        for column, kind in zip(zip(*given, strict=True), view.keys.values(), strict=True)
    ]
    return [EntityKey(join_keys=list(view.keys), entity_values=row) for row in zip(*columns, strict=True)]


def differences(packed: Sequence[Packed], feast: Sequence[FeastRow]) -> Iterator[Difference]:
    """(key, feature, packed value, Feast's value) of each that differ; the feature `event_timestamp` is the time."""
    for (key, event_ts, features), (time, values) in zip(packed, feast, strict=True):
        ours, theirs = _second(moment(event_ts)), time and _second(time)
        if ours != theirs:
            yield key, "event_timestamp", ours, theirs
        for name, value in features.items():
            one, other = _seconds(value), _plain((values or {}).get(name))
            if one != other:
                yield key, name, value, other


def _value(part: Any, kind: str) -> Any:
    return datetime.fromisoformat(part) if kind == "UNIX_TIMESTAMP" else part


def _plain(value: Any) -> Any:
    """As the packed store gives it: JSON values."""
    return None if value is None else _seconds(orjson.loads(to_json(python_value(value))))


def _second(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


def _seconds(value: Any) -> Any:
    """Feast knows no fraction of a second in a value."""
    if not isinstance(value, str) or len(value) < len("2013-01-01T00:00:00.5") or value[10] != "T":
        return value
    try:
        return _second(datetime.fromisoformat(value)).isoformat()
    except ValueError:  # a text that only looked like a time
        return value
