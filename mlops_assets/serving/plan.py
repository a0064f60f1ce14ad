"""The feature plan: which values a model reads, in which order, and where each is found.

Compiled from the declaration when a model is trained, carried by its bundle as `plan.json`, and read by
the serving process. The rule that must never break: a value used at time t was true and known at t, and
no older than its view's ttl, exactly as the point-in-time join of training had it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self
from weakref import WeakKeyDictionary

from mlops_assets.fields import TypeName
from mlops_assets.serving.transform import Transform
from resources.online.packed_store import OnlineStoreUnavailableError, TableRead

if TYPE_CHECKING:
    from mlops_assets.declarations import Entity, ModelPipeline, StoredSelection

EVENT_TIMESTAMP = "event_timestamp"  # as an on-demand feature names the moment asked about
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Reason = Literal["no row", "expired", "from the future", "store away"]
NO_ROW: Reason = "no row"
STORE_AWAY: Reason = "store away"
Stand = Literal["nulls", "cold start"]
Key = tuple[Any, ...]
Found = tuple[int, Sequence[Any]]  # event time in microseconds, values in the order of the features read


class Reader(Protocol):
    """Reads the tables it was made for, in one round trip; `resources.online.packed_store.Reader` is one."""

    def read(self, keys: Sequence[Sequence[Key]], /) -> Sequence[Sequence[Found | None]]: ...


class Store(Protocol):
    """Where the newest row per key is found; `resources.online.packed_store.PackedStore` is one."""

    def reader(self, reads: Sequence[TableRead], /) -> Reader: ...


class EmptyStore:
    """A store with no rows, for a Bento that is served without the platform: every view falls back."""

    def reader(self, _: Sequence[TableRead], /) -> EmptyStore:
        return self

    def read(self, keys: Sequence[Sequence[Key]], /) -> list[list[Found | None]]:
        return [[None] * len(wanted) for wanted in keys]


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
    """A value that only the caller knows; `minimum` and `maximum` are inclusive, `size` is an array's length."""

    name: str
    dtype: TypeName
    description: str = ""
    unit: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    size: int | None = None


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

    def instead(self, stand_in: Found | None, at: int) -> tuple[Stand, dict[str, Any]]:
        """What is used at `at` where there is no usable row; `stand_in` is the newest row of the cold start's table."""
        if self.cold_start_values is not None:
            return "cold start", {name: self.cold_start_values.get(name) for name in self.features}
        if stand_in is None or stand_in[0] > at:
            return "nulls", dict.fromkeys(self.features)
        return "cold start", dict(zip(self.features, stand_in[1], strict=True))

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
    without_store: Literal["refuse", "fall back"] = "refuse"
    deadline_ms: float = 10_000.0

    @classmethod
    def of(cls, pipeline: ModelPipeline) -> Self:
        """The plan of a declared model."""
        return cls(
            model=pipeline.id,
            key=pipeline.labels.key,
            entities=tuple(PlannedEntity.of(entity) for entity in pipeline.labels.entities),
            request=tuple(
                RequestField(name, field.dtype, field.description, field.unit, field.minimum, field.maximum, field.size)
                for name, field in pipeline.labels.request.items()
            ),
            views=tuple(ViewRead.of(selection) for selection in pipeline.selections),
            inputs=tuple(pipeline.inputs),
            transforms=tuple(Transform.of(selection) for selection in pipeline.on_demand),
            without_store=pipeline.serve.without_store,
            deadline_ms=pipeline.serve.deadline.total_seconds() * 1000,
        )

    @cached_property
    def join_keys(self) -> tuple[str, ...]:
        return tuple(entity.join_key for entity in self.entities)

    @cached_property
    def reads(self) -> tuple[TableRead, ...]:
        """The tables to read for an answer: every view's, then those of the cold starts, in the views' order."""
        stand_ins = [(view.cold_start_table, view.features) for view in self.views if view.cold_start_table]
        views = [(view.table, view.features) for view in self.views]
        return tuple(TableRead(table, features) for table, features in [*views, *stand_ins])

    @cached_property
    def key_sets(self) -> tuple[tuple[str, ...], ...]:
        """The join keys by which views are read, each set once."""
        return tuple(dict.fromkeys(view.join_keys for view in self.views))

    @cached_property
    def stand_ins(self) -> int:
        """How many views have a table that stands in for theirs."""
        return sum(view.cold_start_table is not None for view in self.views)

    def reader(self, store: Store) -> Reader:
        """What reads them from a store, made once."""
        reader = self._readers.get(store)
        if reader is None:
            reader = self._readers[store] = store.reader(self.reads)
        return reader

    @cached_property
    def _readers(self) -> WeakKeyDictionary[Store, Reader]:
        return WeakKeyDictionary()

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
            without_store=plan["without_store"],
            deadline_ms=plan["deadline_ms"],
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
    """The inputs of each request (join keys and request features by name) as known at `at`, in order."""
    known, looked = find(plan, store, requests, at)
    compute(plan, known, looked)
    return looked


def find(
    plan: FeaturePlan, store: Store, requests: Sequence[Mapping[str, Any]], at: datetime
) -> tuple[list[dict[str, Any]], list[Looked]]:
    """What is known of each request at `at`, by name, and where it came from; no inputs yet.

    All views are read in one round trip, a key asked many times once. A row newer than `at` or older than the
    view's ttl is not used: its cold start, or nulls, stand in for it, and a fallback says why. While the store is away
    so it is for every view of a plan that falls back; another raises OnlineStoreUnavailableError.
    """
    known: list[dict[str, Any]] = [{**request, EVENT_TIMESTAMP: at} for request in requests]
    looked = [Looked([], {}, []) for _ in requests]
    if not requests:  # rows that bring their own features need no store, least of all one that is away
        return known, looked
    found, missing = _found_or_away(plan, store, requests)
    at_us = microseconds(at)
    for view, some in zip(plan.views, found, strict=True):
        _fill(view, some, at_us, missing, known, looked)
    return known, looked


def compute(plan: FeaturePlan, known: Sequence[dict[str, Any]], looked: Sequence[Looked]) -> None:
    """Add what is computed on demand, and give each request its inputs in order."""
    for transform in plan.transforms if known else ():
        computed = transform.columns(known)
        for index, values in enumerate(known):
            values.update((name, column[index]) for name, column in computed.items())
    for values, answer in zip(known, looked, strict=True):
        answer.values = [values[name] for name in plan.inputs]


class _Some(NamedTuple):
    """What the store has of one view for some requests: a key and a row each, and the newest stand-in."""

    keys: Sequence[Key]
    rows: Sequence[Found | None]
    stand_in: Found | None


def _fill(
    view: ViewRead, some: _Some, at: int, missing: Reason, known: Sequence[dict[str, Any]], looked: Sequence[Looked]
) -> None:
    """Put the view's values, or what stands in for them, into what is known of each request."""
    features, instead = view.features, None
    for values, answer, key, row in zip(known, looked, some.keys, some.rows, strict=True):
        reason = missing if row is None else view.reason_to_refuse(row[0], at)
        if row is not None and reason is None:
            answer.event_times[view.view] = row[0]
            values.update(zip(features, row[1], strict=True))
        else:
            instead = instead or view.instead(some.stand_in, at)
            names = dict(zip(view.join_keys, key, strict=True))
            answer.fallbacks.append(Fallback(view.view, names, reason or missing, instead[0]))
            values.update(instead[1])


def _found_or_away(
    plan: FeaturePlan, store: Store, requests: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[_Some], Reason]:
    """What the store has for each view, and why it has no row where it has none."""
    if not plan.views:  # a model that asks its caller for everything does not need one
        return [], NO_ROW
    asked = {names: [tuple([request[name] for name in names]) for request in requests] for names in plan.key_sets}
    try:
        return _found(plan, store, asked), NO_ROW
    except OnlineStoreUnavailableError:
        if plan.without_store == "refuse":
            raise
        return [_Some(asked[view.join_keys], [None] * len(requests), None) for view in plan.views], STORE_AWAY


def _found(plan: FeaturePlan, store: Store, asked: Mapping[tuple[str, ...], Sequence[Key]]) -> list[_Some]:
    """A key that many requests name is read once."""
    distinct = {names: keys if len(keys) == 1 else [*dict.fromkeys(keys)] for names, keys in asked.items()}
    stand_ins = [()] if plan.stand_ins else []
    reads = [distinct[view.join_keys] for view in plan.views]
    answers = plan.reader(store).read([*reads, *(stand_ins for _ in range(plan.stand_ins))])
    newest = iter(answers[len(reads) :])
    found = []
    for view, rows in zip(plan.views, answers, strict=False):
        keys, once = asked[view.join_keys], distinct[view.join_keys]
        if len(once) != len(keys):
            by_key = dict(zip(once, rows, strict=True))
            rows = [by_key[key] for key in keys]  # noqa: PLW2901  a row a request
        found.append(_Some(keys, rows, next(newest)[0] if view.cold_start_table else None))
    return found
