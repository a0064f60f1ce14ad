"""Why a feature differs online and offline: a guess, from what both stores hold about the keys that were asked for.

The evidence is one question, asked of every differing row: what has offline for the very event whose row online used?
The same values: the row is right and only not the newest, so it was late, or publication is behind. The values of
another hour: a time zone. Other values, all by one factor: a unit. The rule that must never break: a difference is
called late only where nothing shows that the endpoint could have known better.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from math import isclose, isfinite
from typing import TYPE_CHECKING, Any, TypeVar

from mlops_assets.catalog import asset_key
from mlops_assets.declarations import EVENT_TIMESTAMP, ComputedSelection, FeatureView, ModelPipeline
from mlops_assets.parity.replay import Request, keys_of, written_at
from mlops_assets.serving.plan import FeaturePlan, Key, ViewRead, microseconds, moment_of
from mlops_assets.serving.transform import Transform

if TYPE_CHECKING:
    import polars as pl

    from resources.lake import Lake
    from resources.online.packed_store import PackedStore

PUBLICATION = timedelta(hours=1)  # how long a row may take from the lake to the online store
NEVER = datetime.max.replace(tzinfo=UTC)
HALF_HOUR = 1_800_000_000  # in microseconds; some zones are off by one
SHIFTS = sorted((count * HALF_HOUR for count in range(-28, 29) if count), key=abs)  # zones are at most 14 hours away
Alike = Callable[[Any, Any], bool]
Owner = TypeVar("Owner", FeatureView, ComputedSelection)
LATE, BEHIND, TTL = "late row", "online behind", "TTL"
TIME_ZONE, UNIT, SHADOWED, UNKNOWN = "time zone", "unit change", "shadowed", "unknown"


@dataclass(frozen=True)
class Mismatch:
    """One feature of one request that is not the same online and offline."""

    request: Request
    feature: str
    online: Any
    offline: Any


@dataclass(frozen=True)
class Cause:
    """Why: a kind (one of those below) and what is known of this case."""

    kind: str
    said: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.said}"

    @property
    def late(self) -> bool:
        """The endpoint could not have known it."""
        return self.kind == LATE


@dataclass(frozen=True)
class Row:
    """A row of a view: when its event was (microseconds) and its features."""

    event: int
    features: Mapping[str, Any]


class History:
    """The offline rows of one view for some keys, by event time."""

    def __init__(self, view: FeatureView, frame: pl.LazyFrame, keys: Sequence[Key]) -> None:
        self._rows: dict[Key, dict[int, Mapping[str, Any]]] = defaultdict(dict)
        for row in _of_keys(frame, view.join_keys, keys).sort(EVENT_TIMESTAMP).iter_rows(named=True):
            key = tuple(row[name] for name in view.join_keys)
            self._rows[key][microseconds(row[EVENT_TIMESTAMP])] = row
        self._events = {key: list(rows) for key, rows in self._rows.items()}

    def at(self, key: Key, event: int | None) -> Mapping[str, Any] | None:
        """The row of that very event."""
        return None if event is None else self._rows[key].get(event)

    def newest(
        self, key: Key, at: datetime, ttl: timedelta | None, fits: Callable[[int], bool] = lambda _: True
    ) -> int | None:
        """The event that a reader at `at` sees, of those that fit."""
        moment, events = microseconds(at), self._events.get(key, [])
        seen = (event for event in reversed(events[: bisect_right(events, moment)]) if not _older(event, moment, ttl))
        return next(filter(fits, seen), None)


def _of_keys(frame: pl.LazyFrame, join_keys: Sequence[str], keys: Sequence[Key]) -> pl.DataFrame:
    import polars as pl

    if not join_keys:
        return frame.collect()
    types = frame.select(join_keys).collect_schema()
    wanted = pl.DataFrame(keys, schema=dict(types), orient="row", strict=False)
    return frame.join(wanted.lazy(), on=list(join_keys), how="semi").collect()


@dataclass(frozen=True)
class Sight:
    """What the two sides saw of one view in one request."""

    request: Request
    view: FeatureView
    read: ViewRead | None
    key: Key
    used: Row | None  # the row that online used or, where it refused one, the row that is online now
    offline_event: int | None

    @property
    def online_event(self) -> int | None:
        """The event of the row that was used."""
        return self.request.event_times.get(self.view.id)


class Evidence:
    """What both stores hold about the keys of the requests that differ; every view is read once."""

    def __init__(
        self,
        model: ModelPipeline,
        plan: FeaturePlan,
        requests: Sequence[Request],
        frames: Mapping[str, pl.LazyFrame],
        lake: Lake,
        store: PackedStore,
        alike: Alike,
    ) -> None:
        self._requests, self._frames, self._lake, self._store = requests, frames, lake, store
        self.model, self.plan, self.alike = model, plan, alike
        self._histories: dict[str, History] = {}
        self._online: dict[str, dict[Key, Row]] = {}
        self._files: dict[str, dict[str | None, datetime | None]] = {}

    @cached_property
    def reads(self) -> dict[str, ViewRead]:
        return {read.view: read for read in self.plan.views}

    def history(self, view: FeatureView) -> History:
        if view.id not in self._histories:
            keys = keys_of(self._requests, view.join_keys)
            self._histories[view.id] = History(view, self._frames[f"view_{view.name}"], keys)
        return self._histories[view.id]

    def online(self, read: ViewRead) -> dict[Key, Row]:
        """What the store holds now; when the request was answered it may have been another row."""
        if read.view not in self._online:
            keys = keys_of(self._requests, read.join_keys)
            rows = zip(keys, self._store.read(read.table, keys), strict=True)
            self._online[read.view] = {key: Row(*row) for key, row in rows if row is not None}
        return self._online[read.view]

    def sight(self, view: FeatureView, request: Request) -> Sight:
        read = self.reads.get(view.id)
        key = tuple(request.row[name] for name in view.join_keys)
        offline_event = self.history(view).newest(key, request.at, view.ttl)
        return Sight(request, view, read, key, self._used(view, read, key, request), offline_event)

    def _used(self, view: FeatureView, read: ViewRead | None, key: Key, request: Request) -> Row | None:
        event, reason = request.event_times.get(view.id), request.reasons.get(view.id)
        if event is not None:
            return Row(event, {name: request.values[name] for name in view.schema if name in request.values})
        held = self.online(read).get(key) if read and reason != "no row" else None
        if read is None or held is None or read.reason_to_refuse(held.event, microseconds(request.at)) != reason:
            return None  # it has been replaced since
        return Row(held.event, {name: value for name, value in held.features.items() if name in read.features})

    def same(self, row: Row, offline: Mapping[str, Any] | None) -> bool:
        """Offline has these values."""
        return offline is not None and all(self.alike(value, offline[name]) for name, value in row.features.items())

    def written(self, view: FeatureView, event: int) -> datetime:
        """When the file of the lake that holds an event was last published."""
        key, moment = asset_key(view), f"{moment_of(event):%Y-%m-%d-%H:%M}"
        if view.id not in self._files:
            self._files[view.id] = dict.fromkeys(self._lake.partitions(key))
        files = self._files[view.id]
        name = max((name for name in files if name is not None and name <= moment), default=None)
        if files.get(name) is None:
            files[name] = written_at(self._lake.path(key, name))
        return files[name] or NEVER

    def knowable(self, view: FeatureView, key: Key, request: Request) -> int | None:
        """The newest event that offline had for so long, when the request was answered, that online should have it."""
        known = request.answered - PUBLICATION
        return self.history(view).newest(key, request.at, view.ttl, lambda event: self.written(view, event) <= known)


def event_time(view: FeatureView) -> str:
    """The name under which a view's event times are compared, beside its features."""
    return f"{view.name}.{EVENT_TIMESTAMP}"


def other_times(found: Sequence[Mismatch], requests: Sequence[Request], evidence: Evidence) -> list[Mismatch]:
    """Rows with offline's values but not its event time: they will expire, or be seen, at the wrong moment.

    An older row that offline has too is none, whatever is newer offline: its values are still true.
    """
    told = {(id(one.request), one.feature) for one in found}
    return [
        Mismatch(
            sight.request,
            event_time(sight.view),
            moment_of(sight.used.event),
            sight.offline_event and moment_of(sight.offline_event),
        )
        for item in evidence.model.selections
        for sight in (evidence.sight(item.view, one) for one in requests if item.view.id in one.event_times)
        if sight.used is not None and sight.used.event != sight.offline_event
        if not any((id(sight.request), name) in told for name in item.features)
        if not evidence.same(sight.used, evidence.history(item.view).at(sight.key, sight.used.event))
    ]


# -- causes ---------------------------------------------------------------------------------------------------


def causes(found: Sequence[Mismatch], evidence: Evidence) -> list[Cause]:
    """The likeliest cause of each mismatch, in order."""
    selections = evidence.model.selections
    stored = {name: item.view for item in selections for name in (*item.features, event_time(item.view))}
    computed = {name: item for item in evidence.model.on_demand for name in item.features}
    said: dict[int, Cause] = {}
    for view, indices in _grouped(found, stored):
        said.update(zip(indices, _of_stored(view, [found[index] for index in indices], evidence), strict=True))
    through = {(id(found[index].request), found[index].feature): cause for index, cause in said.items()}
    for item, indices in _grouped(found, computed):
        said.update((index, _of_computed(item, found[index], through, evidence)) for index in indices)
    undeclared = Cause("no longer declared", "the Bento reads it and the declaration does not; train again")
    return [said.get(index, undeclared) for index in range(len(found))]


def _grouped(found: Sequence[Mismatch], owners: Mapping[str, Owner]) -> list[tuple[Owner, list[int]]]:
    """The mismatches of each owner, by their place."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, one in enumerate(found):
        if one.feature in owners:
            groups[id(owners[one.feature])].append(index)
    return [(owners[found[indices[0]].feature], indices) for indices in groups.values()]


def _of_stored(view: FeatureView, group: Sequence[Mismatch], evidence: Evidence) -> list[Cause]:
    """A cause for each mismatch of a view that is kept in the stores."""
    sights = {id(one.request): evidence.sight(view, one.request) for one in group}
    rows = _in_another_zone(sights, {name: _of_row(sight, evidence) for name, sight in sights.items()}, evidence)
    units = _units([one for one in group if rows[id(one.request)] is None], sights, evidence)
    return [
        _computed_online(one.feature, view, evidence)
        or rows[id(one.request)]
        or units.get(one.feature)
        or _of_value(sights[id(one.request)], evidence)
        for one in group
    ]


def _in_another_zone(
    sights: Mapping[int, Sight], rows: Mapping[int, Cause | None], evidence: Evidence
) -> Mapping[int, Cause | None]:
    """One time zone for all rows of the view, if it explains them all; else for all that nothing else explains."""
    if None not in rows.values():
        return rows
    unsettled = [name for name, cause in rows.items() if cause is None or cause.kind != TTL]
    unexplained = [name for name, cause in rows.items() if cause is None]
    for names in (unsettled, unexplained):
        if zone := _time_zone([sights[name] for name in names], evidence):
            return {**rows, **dict.fromkeys(names, zone)}
    return rows


def _of_row(sight: Sight, evidence: Evidence) -> Cause | None:
    """What explains all features of a row at once; None where the values of its event differ."""
    for explanation in (_not_online, _other_ttl, _other_stand_in, _not_newest, _missing):
        if cause := explanation(sight, evidence):
            return cause
    return None


def _not_online(sight: Sight, _: Evidence) -> Cause | None:
    return None if sight.view.online else Cause("never online", "the view is declared with online=False")


def _other_ttl(sight: Sight, evidence: Evidence) -> Cause | None:
    """One side showed a row that was too old for the other."""
    if sight.read is None:
        return None
    declared, planned = sight.view.ttl, _duration(sight.read.ttl_seconds)
    said = Cause(TTL, f"the declared one is {declared or 'none'}, the Bento's {planned or 'none'}")
    at, history = microseconds(sight.request.at), evidence.history(sight.view)
    if sight.online_event is not None and sight.offline_event is None:
        return said if _older(sight.online_event, at, declared) and history.at(sight.key, sight.online_event) else None
    expired = sight.request.reasons.get(sight.view.id) == "expired" and sight.offline_event is not None
    return said if expired and _older(sight.offline_event, at, planned) else None


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _older(event: int | None, at: int, ttl: timedelta | None) -> bool:
    return event is not None and ttl is not None and event < at - ttl // timedelta(microseconds=1)


def _other_stand_in(sight: Sight, evidence: Evidence) -> Cause | None:
    """Neither side had a row of the key: their cold starts differ."""
    view, request = sight.view, sight.request
    if sight.online_event is not None or sight.offline_event is not None or not view.cold_start:
        return None
    other = Cause("cold start", "what stood in online never did offline")
    if view.stand_in is None or (newest := evidence.history(view.stand_in).newest((), request.at, None)) is None:
        return other
    history, row = (
        evidence.history(view.stand_in),
        Row(0, {n: request.values[n] for n in view.schema if n in request.values}),
    )
    used = history.newest((), request.at, None, lambda event: evidence.same(row, history.at((), event)))
    return _came(request, view.stand_in, (), used, newest, evidence) if used is not None else other


def _not_newest(sight: Sight, evidence: Evidence) -> Cause | None:
    """The row online is what offline has for its event, but offline shows a newer one, or that is yet to come."""
    used = sight.used
    if used is None or used.event == sight.offline_event:
        return None
    if not evidence.same(used, evidence.history(sight.view).at(sight.key, used.event)):
        return None
    if used.event > microseconds(sight.request.at):
        return Cause("asked about the past", f"online had moved on to the row of {_shown(used.event)}")
    if sight.offline_event is None:
        return None
    return _came(sight.request, sight.view, sight.key, used.event, sight.offline_event, evidence)


def _missing(sight: Sight, evidence: Evidence) -> Cause | None:
    """Only offline has a row, and of the one online there is no trace."""
    return _unpublished(sight, evidence) if sight.used is None else None


def _unpublished(sight: Sight, evidence: Evidence) -> Cause | None:
    if sight.online_event is not None or sight.offline_event is None:
        return None
    return _came(sight.request, sight.view, sight.key, None, sight.offline_event, evidence)


def _came(request: Request, view: FeatureView, key: Key, used: int | None, newest: int, evidence: Evidence) -> Cause:
    """Late, if online had (`used`) the newest row that it could have; every newer one came too late for the answer."""
    had = "no valid row" if used is None else f"the row of {_shown(used)}"
    knowable = evidence.knowable(view, key, request)
    late = knowable is None or (used is not None and used >= knowable)
    shown = newest if late or knowable is None else knowable
    published = f"that of {_shown(shown)}, published {_minute(evidence.written(view, shown))}"
    return Cause(
        LATE if late else BEHIND, f"online had {had}, offline {published}; answered {_minute(request.answered)}"
    )


def _time_zone(sights: Sequence[Sight], evidence: Evidence) -> Cause | None:
    """One shift (two an hour apart, where clocks change) under which every row that is online is offline's."""
    fitting = [_shifts(sight, evidence) for sight in sights]
    if not fitting or not all(fitting):
        return None
    common = set.intersection(*map(set, fitting))
    if common:
        return Cause(TIME_ZONE, f"event times online are {_hours([min(common, key=abs)])} from offline's")
    nearest = sorted({shifts[0] for shifts in fitting})
    apart = nearest[-1] - nearest[0]
    if apart != 2 * HALF_HOUR:
        return None
    return Cause(TIME_ZONE, f"event times online are {_hours(nearest)} from offline's, as where clocks change")


def _shifts(sight: Sight, evidence: Evidence) -> list[int]:
    """By which shifts of its event time the row online is one of offline's, the smallest first."""
    if sight.used is None:
        return []
    history, used = evidence.history(sight.view), sight.used
    return [-by for by in SHIFTS if evidence.same(used, history.at(sight.key, used.event + by))]


def _hours(shifts: Sequence[int]) -> str:
    return " or ".join(f"{shift / HALF_HOUR / 2:+g} h" for shift in shifts)


def _computed_online(feature: str, view: FeatureView, evidence: Evidence) -> Cause | None:
    """What offline reads from a column, the Bento computes."""
    computed = [transform.view for transform in evidence.plan.transforms if feature in transform.features]
    return (
        Cause(SHADOWED, f"offline reads a column of {view.id}, online {computed[0]} computes it") if computed else None
    )


def _stored_online(feature: str, item: ComputedSelection, evidence: Evidence) -> Cause | None:
    """What offline computes, the Bento reads from a stored column of that name (the other way round, feast #5534)."""
    stored = [read.view for read in evidence.plan.views if feature in read.features]
    return (
        Cause(SHADOWED, f"online reads a column of {stored[0]}, offline {item.view.id} computes it") if stored else None
    )


def _units(group: Sequence[Mismatch], sights: Mapping[int, Sight], evidence: Evidence) -> dict[str, Cause]:
    """Of which features all differing values are those of the same events in another unit."""
    pairs: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for one in group:
        sight = sights[id(one.request)]
        same_event = evidence.history(sight.view).at(sight.key, sight.online_event)
        pairs[one.feature].append((one.online, same_event[one.feature] if same_event else None))
    found = {feature: _line(values) for feature, values in pairs.items()}
    return {feature: Cause(UNIT, f"offline = {line}") for feature, line in found.items() if line}


def _line(pairs: Iterable[tuple[Any, Any]]) -> str | None:
    """`a x online` through two points or more, else `a x online + b` through three; None where neither fits all."""
    points = sorted({pair for pair in pairs if all(_is_number(value) for value in pair)})
    if len(points) < 2 or len(points) < len(set(pairs)):
        return None
    (x0, y0), (x1, y1) = points[0], points[-1]
    slopes = [y / x for x, y in points if x]
    if len(slopes) == len(points) and all(isclose(one, other, rel_tol=1e-6) for one, other in pairwise(slopes)):
        return f"{slopes[0]:.6g} x online"
    if len(points) < 3 or x0 == x1:
        return None
    slope = (y1 - y0) / (x1 - x0)
    base = y0 - slope * x0
    fits = all(isclose(y, slope * x + base, rel_tol=1e-6, abs_tol=1e-6) for x, y in points)
    return f"{slope:.6g} x online {base:+.6g}" if fits and slope else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _of_value(sight: Sight, evidence: Evidence) -> Cause:
    """Two values of one event, or an event that offline does not have."""
    event = sight.online_event
    if event is None:
        return _unpublished(sight, evidence) or Cause(UNKNOWN, "neither side had a row")
    if evidence.history(sight.view).at(sight.key, event) is None:
        return Cause("not offline", f"online used a row of {_shown(event)}, which offline does not have")
    written = evidence.written(sight.view, event)
    if written > sight.request.answered:
        return Cause(
            "recomputed", f"the row of {_shown(event)} was published anew {_minute(written)}, after the answer"
        )
    return Cause(UNKNOWN, f"two values for one event, of {_shown(event)}")


def _of_computed(
    item: ComputedSelection, one: Mismatch, through: Mapping[tuple[int, str], Cause], evidence: Evidence
) -> Cause:
    """Of an on-demand feature: a column of its name, its inputs, or its function."""
    inputs = [(name, through[id(one.request), name]) for name in item.view.inputs if (id(one.request), name) in through]
    return (
        _stored_online(one.feature, item, evidence)
        or _through(inputs)
        or _other_function(one.feature, item, evidence)
        or _unseen_input(one.request, item, evidence)
        or Cause(UNKNOWN, "its inputs are alike, as far as they are inputs of the model")
    )


def _through(inputs: Sequence[tuple[str, Cause]]) -> Cause | None:
    """The inputs' own cause, of several the one that is not lateness."""
    if not inputs:
        return None
    worst = min((cause for _, cause in inputs), key=lambda cause: cause.late)
    return Cause(worst.kind, f"computed from {', '.join(name for name, _ in inputs)}: {worst.said}")


def _other_function(feature: str, item: ComputedSelection, evidence: Evidence) -> Cause | None:
    planned = [transform.features[feature] for transform in evidence.plan.transforms if feature in transform.features]
    if planned and planned[0] != Transform.of(item).features[feature]:
        return Cause("another function", f"{item.view.id} has changed since the Bento was trained")
    return None


def _unseen_input(request: Request, item: ComputedSelection, evidence: Evidence) -> Cause | None:
    """A stored input that is no input of the model is in no answer; its event time is."""
    for need in item.view.needs:
        if isinstance(need.view, FeatureView) and (cause := _of_row(evidence.sight(need.view, request), evidence)):
            return Cause(cause.kind, f"computed from {', '.join(need.features)}: {cause.said}")
    return None


def _shown(event: int) -> str:
    return _minute(moment_of(event))


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"
