"""The parity gate: are the features that the endpoint uses those that training would have read?

A `Report` compares, value for value, the online inputs of some requests (`mlops_assets.parity.replay`) with the
point-in-time rows of the current declaration at each request's own moment, and names every difference with both
values and its likeliest cause (`mlops_assets.parity.skew`). The Bento's blocking check and `mlops features parity`
read it. Two values are alike when a reader could not tell them apart: NaN is null, a time is its ISO text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

from mlops_assets.catalog import asset_key
from mlops_assets.claims import Claim
from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, ModelPipeline
from mlops_assets.links.training_set import point_in_time_rows, stored_views
from mlops_assets.parity.replay import Request, logged, published_as_of, sampled
from mlops_assets.parity.skew import Cause, Evidence, Mismatch, causes, event_time, other_times
from mlops_assets.serving.bundle import plan_of
from mlops_assets.serving.plan import FeaturePlan

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.bentos import BentoStore
    from resources.lake import Lake
    from resources.online.packed_store import PackedStore

Origin = Literal["logged answers", "sampled events", "nothing"]
CHECK, IN_TIME = "feature_parity", "features_in_time"
LATE_SHARE = 0.05  # more than the minutes that a daily publication takes, much less than a view that always comes late
DAY = timedelta(days=1)
EXAMPLES = 3
MENDED = "Answers stay as they were logged: once it is mended, materialize with now_only to look events up anew"


@dataclass(frozen=True)
class Difference:
    """One feature of one request that differs, and why it probably does."""

    request_id: str
    at: datetime
    keys: Mapping[str, Any]
    feature: str
    online: Any
    offline: Any
    cause: Cause

    @property
    def cells(self) -> tuple[str, ...]:
        """As a line of a table."""
        keys = ", ".join(f"{name}={value}" for name, value in self.keys.items())
        moment = f"{self.at:%Y-%m-%d %H:%M:%S}"
        return (self.feature, _shown(self.online), _shown(self.offline), keys, moment, str(self.cause))


COLUMNS = ("feature", "online", "offline", "keys", "at (UTC)", "likely cause")
FEATURE_COLUMNS = ("feature", "differ", "late", "compared", "likely causes")


@dataclass(frozen=True)
class Report:
    """What was compared (the features, and the event times of the views' rows), and every difference."""

    model: str
    origin: Origin
    requests: tuple[Request, ...]
    features: tuple[str, ...]
    times: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def values(self) -> int:
        return len(self.requests) * (len(self.features) + len(self.times))

    @property
    def skewed(self) -> list[Difference]:
        """What counts: the two sides disagree about what both could know."""
        return [one for one in self.differences if not one.cause.late]

    @property
    def late(self) -> list[Difference]:
        """What the endpoint could not have known when it answered."""
        return [one for one in self.differences if one.cause.late]

    def share(self, differences: Sequence[Difference]) -> float:
        return len(differences) / self.values if self.values else 0.0

    @property
    def compared(self) -> str:
        """In words."""
        if not self.requests:
            return "nothing to replay: no answer is logged, and no view is online or no event is labelled"
        moments = sorted(request.at for request in self.requests)
        span = " to ".join(dict.fromkeys(f"{moment:%Y-%m-%d %H:%M}" for moment in (moments[0], moments[-1])))
        what = f"{len(self.features)} features and {len(self.times)} event times"
        return f"{len(self.requests)} {self.origin} of {span}, {what}, {self.values} values"

    @property
    def by_feature(self) -> list[tuple[str, int, int, int, str]]:
        """Of each feature that differs: how often it counts, how often it was late, of how many, and why."""
        skewed, late = (Counter(one.feature for one in some) for some in (self.skewed, self.late))
        kinds = {name: Counter(d.cause.kind for d in self.differences if d.feature == name) for name in skewed | late}
        return [
            (
                name,
                skewed[name],
                late[name],
                len(self.requests),
                ", ".join(kind for kind, _ in kinds[name].most_common()),
            )
            for name in (*self.features, *self.times)
            if name in kinds
        ]

    def numbers(self) -> dict[str, int]:
        return {
            "compared_rows": len(self.requests),
            "compared_features": len(self.features),
            "compared_values": self.values,
            "differing_values": len(self.skewed),
            "late_values": len(self.late),
        }


def differences(
    model: ModelPipeline,
    plan: FeaturePlan,
    *,
    lake: Lake,
    store: PackedStore,
    bentos: BentoStore,
    log: PredictionLog,
    now_only: bool = False,
    published: datetime | None = None,
) -> Report:
    """Replay logged answers or, where there are none (or with `now_only`), events looked up online now.

    `plan` is that of the Bento to judge. `published` is the moment that the online views were published as of, where
    it is known: a row past its ttl by then was not published, though it was not so at the newest event. Raises
    what `Lake.scan` raises where a view is not offline.
    """
    origin: Origin = "logged answers"
    requests = [] if now_only else logged(model, plan, model.parity.rows, lake, bentos, log)
    if not requests:
        origin, requests = "sampled events", sampled(model, plan, model.parity.rows, lake, store, published)
    if not requests:
        return Report(model.id, "nothing", (), (), (), ())
    return compare(model, plan, requests, lake=lake, store=store, origin=origin)


def here(model: ModelPipeline, *, now_only: bool = False) -> Report:
    """The same with the stores of this environment and the Bento of the champion, the declaration where it has none."""
    import dagster as dg

    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.environment import prepare_home, resources_for

    stores = resources_for()
    record, bentos = stores["releases"].read(model.id), stores["bentos"]
    plan = plan_of(bentos.path(record.champion.release)) if record else FeaturePlan.of(model)
    prepare_home()
    with dg.DagsterInstance.get() as instance:
        published = published_as_of(instance, model)
    return differences(
        model,
        plan,
        lake=stores["lake"],
        store=stores["feast"].packed(),
        bentos=bentos,
        log=PredictionLog(),
        now_only=now_only,
        published=published,
    )


def compare(
    model: ModelPipeline,
    plan: FeaturePlan,
    requests: Sequence[Request],
    *,
    lake: Lake,
    store: PackedStore,
    origin: Origin = "logged answers",
) -> Report:
    """Each input that the caller does not give, of each request, against offline retrieval at the request's moment."""
    given = {field.name for field in plan.request}
    features = tuple(name for name in plan.inputs if name not in given)
    frames = _frames(model, plan, requests, lake)
    same = partial(alike, tolerance=model.parity.tolerance)
    found = [
        Mismatch(request, name, request.values[name], row.get(name))
        for request, row in zip(requests, _offline(model, requests, frames), strict=True)
        for name in features
        if name not in row or not same(request.values[name], row[name])
    ]
    evidence = Evidence(model, plan, requests, frames, lake, store, same)
    found += other_times(found, requests, evidence)
    told = tuple(map(partial(_difference, plan), found, causes(found, evidence)))
    times = tuple(event_time(item.view) for item in model.selections)
    return Report(model.id, origin, tuple(requests), features, times, told)


def _difference(plan: FeaturePlan, found: Mismatch, cause: Cause) -> Difference:
    request = found.request
    keys = {name: request.row[name] for name in plan.join_keys}
    return Difference(request.id, request.at, keys, found.feature, found.online, found.offline, cause)


def alike(one: Any, other: Any, tolerance: float) -> bool:
    """Equal, numbers up to `tolerance` (relative, absolute below 1), arrays element by element."""
    one, other = _plain(one), _plain(other)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(alike(*pair, tolerance) for pair in zip(one, other, strict=True))
    if isinstance(one, datetime) or isinstance(other, datetime):
        return _moment(one) == _moment(other)
    if _is_number(one) and _is_number(other):
        return bool(abs(one - other) <= tolerance * max(1.0, abs(one), abs(other)))
    return bool(one == other)


def _plain(value: Any) -> Any:
    """NaN and infinity are published as null."""
    return None if isinstance(value, float) and not isfinite(value) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _moment(value: Any) -> Any:
    """A time, also of its text as the online store has it."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _offline(
    model: ModelPipeline, requests: Sequence[Request], frames: Mapping[str, pl.LazyFrame]
) -> list[dict[str, Any]]:
    """What training would read at each request's moment, in the order of the requests."""
    import polars as pl

    labels = model.labels
    columns = {name: labels.columns[name].polars for name in (*labels.join_keys, *labels.request)}
    spine = pl.DataFrame(
        {
            EVENT_TIMESTAMP: pl.Series([request.at for request in requests], dtype=pl.Datetime("us", "UTC")),
            labels.key: [f"{index:012d}" for index in range(len(requests))],
            **{name: pl.Series([r.row[name] for r in requests], dtype=dtype) for name, dtype in columns.items()},
        }
    )
    return point_in_time_rows(model, spine.lazy(), frames).sort(labels.key).to_dicts()


def _frames(
    model: ModelPipeline, plan: FeaturePlan, requests: Sequence[Request], lake: Lake
) -> dict[str, pl.LazyFrame]:
    """The views' published rows that any of the requests can see."""
    first, last = min(request.at for request in requests), max(request.at for request in requests)
    planned = {read.view: read.ttl_seconds for read in plan.views}
    return {
        name: _visible(lake, view, _longest(view, planned.get(view.id, 0.0)), first, last)
        for name, view in stored_views(model).items()
    }


def _longest(view: FeatureView, planned: float | None) -> timedelta | None:
    """The longer ttl, the declared or the Bento's, so that what only one of them shows is there to be named."""
    return None if view.ttl is None or planned is None else max(view.ttl, timedelta(seconds=planned))


def _visible(lake: Lake, view: FeatureView, ttl: timedelta | None, first: datetime, last: datetime) -> pl.LazyFrame:
    """Only the partitions from the ttl before the first moment to a day after the last: event times may be shifted."""
    key = asset_key(view)
    partitions = lake.partitions(key)
    if not partitions:
        return lake.scan(key)
    oldest, newest = f"{first - ttl - DAY:%Y-%m-%d}" if ttl else "", f"{last + DAY:%Y-%m-%d}"
    return lake.scan(key, [name for name in partitions if oldest <= name <= newest] or [oldest, newest])


# -- claims ---------------------------------------------------------------------------------------------------


def feature_parity(report: Report, at_most: float) -> Claim:
    """No more values differ than may; lateness is judged by another claim."""
    share = report.share(report.skewed)
    told = f"{report.compared}: {len(report.skewed)} differ ({share:.2%}, at most {at_most:.2%})"
    late = f", {len(report.late)} more were late" if report.late else ""
    if not report.requests:
        told, late = f"{report.compared}. The next Bento is judged", ""
    again = f". {MENDED}" if share > at_most and report.origin == "logged answers" else ""
    return Claim(CHECK, share <= at_most, told + late + _examples(report.skewed) + again, numbers=report.numbers())


def features_in_time(report: Report) -> Claim:
    """What training takes for known at a moment, the endpoint knew then."""
    share = report.share(report.late)
    return Claim(
        IN_TIME,
        share <= LATE_SHARE,
        f"{report.compared}: {len(report.late)} were late ({share:.2%}, at most {LATE_SHARE:.0%})"
        + _examples(report.late),
        blocking=False,
        numbers={"compared_rows": len(report.requests), "late_values": len(report.late)},
    )


def unjudged(problem: object) -> tuple[Claim, Claim]:
    """Both claims where there is nothing to compare with; parity that cannot be shown does not hold."""
    said = f"The features cannot be replayed offline: {problem}"
    return Claim(CHECK, False, said), Claim(IN_TIME, False, said, blocking=False)


def _examples(differences: Sequence[Difference]) -> str:
    """One difference of each feature, the most frequent features first."""
    counted = Counter(one.feature for one in differences)
    first = {one.feature: one for one in reversed(differences)}
    told = [
        f"{name} in {count}, e.g. online {_shown(first[name].online)}, offline {_shown(first[name].offline)} "
        f"({first[name].cause})"
        for name, count in counted.most_common(EXAMPLES)
    ]
    more = f"; and {len(counted) - EXAMPLES} more features" if len(counted) > EXAMPLES else ""
    return f". {'; '.join(told)}{more}" if told else ""


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = f"{value:.10g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
