"""The feature plan: which values a model reads, in which order, and where each is found.

Compiled from the declaration when a model is trained, carried by its bundle as `plan.json`, and read by
the serving process. The rule that must never break: a value used at time t was true and known at t, and
no older than its view's ttl, exactly as the point-in-time join of training had it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from mlops_assets.fields import TypeName
from mlops_assets.serving.transform import Transform

if TYPE_CHECKING:
    from mlops_assets.declarations import Entity, ModelPipeline, StoredSelection

EVENT_TIMESTAMP = "event_timestamp"  # as an on-demand feature names the moment asked about
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Reason = Literal["no row", "expired", "from the future"]
Stand = Literal["nulls", "cold start"]
Key = tuple[Any, ...]


class Store(Protocol):
    """Where the newest row per key is found; `resources.packed_store.PackedStore` is one."""

    def read(self, table: str, keys: Sequence[Key], /) -> Sequence[tuple[int, dict[str, Any]] | None]: ...


class EmptyStore:
    """A store with no rows, for a Bento that is served without the platform: every view falls back."""

    def read(self, _: str, keys: Sequence[Key], /) -> list[None]:
        return [None] * len(keys)


@dataclass(frozen=True)
class PlannedEntity:
    """A join key that the caller names."""

    join_key: str
    dtype: TypeName
    description: str = ""

    @classmethod
    def of(cls, entity: Entity) -> Self:
        return cls(entity.join_key, entity.dtype.dtype, entity.description)


@dataclass(frozen=True)
class RequestField:
    """A value that only the caller knows; `minimum` and `maximum` are inclusive."""

    name: str
    dtype: TypeName
    description: str = ""
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class ViewRead:
    """Some features of one view: `table` in the online store, keyed by `join_keys` in that order."""

    view: str
    table: str
    join_keys: tuple[str, ...]
    features: tuple[str, ...]
    ttl_seconds: float | None = None
    # What is used where there is no usable row: the newest row of another table, or these values.
    cold_start_table: str | None = None
    cold_start_values: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, selection: StoredSelection) -> Self:
        from mlops_assets.cold_start import constant_values

        view, stand_in = selection.view, selection.view.stand_in
        return cls(
            view.id,
            f"{view.team}__{view.name}",
            view.join_keys,
            selection.features,
            view.ttl.total_seconds() if view.ttl else None,
            f"{stand_in.team}__{stand_in.name}" if stand_in else None,
            constant_values(view),
        )

    def reason_to_refuse(self, event_ts: int, at: int) -> Reason | None:
        """Why a row of `event_ts` may not be used at `at` (both microseconds), or None when it may."""
        if event_ts > at:
            return "from the future"
        if self.ttl_seconds is not None and event_ts < at - self.ttl_seconds * 1_000_000:
            return "expired"
        return None


@dataclass(frozen=True)
class FeaturePlan:
    """What a model asks of its caller (`entities`, `request`) and of the store (`views`), what is computed from
    both (`transforms`), and the order of its inputs."""

    model: str
    key: str
    entities: tuple[PlannedEntity, ...]
    request: tuple[RequestField, ...]
    views: tuple[ViewRead, ...]
    inputs: tuple[str, ...]
    transforms: tuple[Transform, ...] = ()

    @classmethod
    def of(cls, pipeline: ModelPipeline) -> Self:
        """The plan of a declared model."""
        return cls(
            model=pipeline.id,
            key=pipeline.labels.key,
            entities=tuple(PlannedEntity.of(entity) for entity in pipeline.labels.entities),
            request=tuple(
                RequestField(name, field.dtype, field.description, field.unit, field.minimum, field.maximum)
                for name, field in pipeline.labels.request.items()
            ),
            views=tuple(ViewRead.of(selection) for selection in pipeline.selections),
            inputs=tuple(pipeline.inputs),
            transforms=tuple(Transform.of(selection) for selection in pipeline.on_demand),
        )

    @cached_property
    def join_keys(self) -> tuple[str, ...]:
        return tuple(entity.join_key for entity in self.entities)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, plan: Mapping[str, Any]) -> Self:
        """The plan that `to_json` gave; KeyError or TypeError when something is missing or unknown."""
        return cls(
            model=plan["model"],
            key=plan["key"],
            entities=tuple(PlannedEntity(**entity) for entity in plan["entities"]),
            request=tuple(RequestField(**field) for field in plan["request"]),
            views=tuple(
                ViewRead(**{**view, "join_keys": tuple(view["join_keys"]), "features": tuple(view["features"])})
                for view in plan["views"]
            ),
            inputs=tuple(plan["inputs"]),
            transforms=tuple(Transform(**transform) for transform in plan["transforms"]),
        )


@dataclass(frozen=True)
class Fallback:
    """A view had no usable row for these keys; `used` says what stood in for it."""

    view: str
    keys: dict[str, Any]
    reason: Reason
    used: Stand = "nulls"


@dataclass(slots=True)
class Looked:
    """The inputs of one request, where they came from, and what was missing."""

    values: list[Any]
    event_times: dict[str, int]
    fallbacks: list[Fallback]


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970, exact where a float of seconds would not be."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def moment_of(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=us)


def look_up(plan: FeaturePlan, store: Store, requests: Sequence[Mapping[str, Any]], at: datetime) -> list[Looked]:
    """The inputs of each request (join keys and request features by name) as known at `at`, in order.

    Each view is read once for all requests. A row newer than `at` or older than the view's ttl is not
    used: its cold start, or nulls, stand in for it, and a fallback says why.
    """
    known: list[dict[str, Any]] = [{**request, EVENT_TIMESTAMP: at} for request in requests]
    looked = [Looked([], {}, []) for _ in requests]
    at_us = microseconds(at)
    for view in plan.views:
        keys = [tuple(request[name] for name in view.join_keys) for request in requests]
        cold = _ColdStart(view, store, at_us)
        for values, answer, key, row in zip(known, looked, keys, _read(view, store, keys), strict=True):
            reason = "no row" if row is None else view.reason_to_refuse(row[0], at_us)
            if row is None or reason is not None:
                names = dict(zip(view.join_keys, key, strict=True))
                answer.fallbacks.append(Fallback(view.view, names, reason, cold.used))  # type: ignore[arg-type]
                values.update(cold.values)
            else:
                answer.event_times[view.view] = row[0]
                values.update((name, row[1].get(name)) for name in view.features)
    for transform in plan.transforms:
        computed = transform.columns(known)
        for index, values in enumerate(known):
            values.update((name, column[index]) for name, column in computed.items())
    for values, answer in zip(known, looked, strict=True):
        answer.values = [values[name] for name in plan.inputs]
    return looked


def _read(view: ViewRead, store: Store, keys: Sequence[Key]) -> Iterable[tuple[int, dict[str, Any]] | None]:
    """One row per key; a key asked many times is read once."""
    distinct = list(dict.fromkeys(keys))
    found = dict(zip(distinct, store.read(view.table, distinct), strict=True))
    return (found[key] for key in keys)


class _ColdStart:
    """What stands in for the rows that a view lacks at a moment; read when it is first needed."""

    def __init__(self, view: ViewRead, store: Store, at: int) -> None:
        self._view, self._store, self._at = view, store, at

    @cached_property
    def _found(self) -> Mapping[str, Any] | None:
        if self._view.cold_start_table is None:
            return self._view.cold_start_values
        (row,) = self._store.read(self._view.cold_start_table, [()])
        return row[1] if row is not None and row[0] <= self._at else None

    @property
    def used(self) -> Stand:
        return "nulls" if self._found is None else "cold start"

    @property
    def values(self) -> dict[str, Any]:
        found = self._found or {}
        return {name: found.get(name) for name in self._view.features}
