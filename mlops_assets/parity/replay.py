"""Requests to replay: answers that an endpoint logged or, where there are none, events looked up as it would now.

One `Request` is one row that was asked about: what the caller gave, the moment, and which inputs the online side
had for it. The parity gate replays them offline. Online values are only ever those that the endpoint's own
`look_up` gave, with the plan of the Bento that is judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import asset_key
from mlops_assets.declarations import EVENT_TIMESTAMP, ModelPipeline
from mlops_assets.links import predictions, spec
from mlops_assets.links.online import online_key
from mlops_assets.serving.bundle import BrokenBundleError, plan_of
from mlops_assets.serving.plan import FeaturePlan, Looked, Reason, look_up, microseconds, moment_of
from resources.bentos import UnknownBentoError

if TYPE_CHECKING:
    import dagster as dg
    import polars as pl

    from mlops_assets.serving.prediction_log import PredictionLog
    from resources.bentos import BentoStore
    from resources.lake import Lake
    from resources.online.packed_store import PackedStore

RECENT = timedelta(days=7)  # older answers tell of an online store that is no more
NEWEST_DAYS = 7


@dataclass(frozen=True)
class Request:
    """A row that was asked about at `at`, answered (by the real clock) at `answered`.

    `row` has join keys and request features, `values` every input of the plan; `event_times` (microseconds) are
    those of the rows used, by view, and `reasons` say why a view had none.
    """

    id: str
    at: datetime
    answered: datetime
    row: Mapping[str, Any]
    values: Mapping[str, Any]
    event_times: Mapping[str, int]
    reasons: Mapping[str, Reason]


def reading(plan: FeaturePlan) -> dict[str, Any]:
    """What decides which values a plan gives: of two plans alike in this, the answers are interchangeable."""
    whole: dict[str, Any] = json.loads(json.dumps(plan.to_json()))
    return {name: whole[name] for name in ("views", "inputs", "transforms")}


# -- logged ---------------------------------------------------------------------------------------------------


def logged(
    model: ModelPipeline, plan: FeaturePlan, rows: int, lake: Lake, bentos: BentoStore, log: PredictionLog
) -> list[Request]:
    """`rows` requests of the newest days, where there are so many, drawn by a hash of their id within a day.

    Only answers of the last week, by Bentos that read features as `plan` does.
    """
    alike: dict[str, bool] = {}
    found: list[Request] = []
    for answers in _newest_answers(model, lake, log):
        for tag in set(answers["release"].to_list()) - alike.keys():
            alike[tag] = _reads_alike(plan, tag, bentos)
        fit = _looked_up_by(answers, [tag for tag, same in alike.items() if same])
        found += [_answered(plan, one) for one in predictions.logged(model, _drawn(fit, "request_id", rows)).to_dicts()]
        if len(found) >= rows:
            break
    return found[:rows]


def _newest_answers(model: ModelPipeline, lake: Lake, log: PredictionLog) -> Iterator[pl.DataFrame]:
    """The answers of one day after the other, the newest day first.

    From the log what came since the newest table of predictions was written, then from those tables: reading a
    week of the log itself would take minutes where there is traffic.
    """
    import polars as pl

    key, horizon = spec.link_key(model, predictions.LINK), datetime.now(UTC) - RECENT
    tables = lake.partitions(key)[-NEWEST_DAYS:]
    since = max(written_at(lake.path(key, tables[-1])), horizon) if tables else horizon
    newest = log.since(model.id, since)
    for (_,), day in reversed(list(newest.group_by(pl.col("at").dt.date(), maintain_order=True))):
        yield day
    for table in reversed(tables):
        yield lake.scan(key, [table]).filter(pl.col("logged_at") >= horizon).collect()


def written_at(path: Any) -> datetime:
    """When a file of the lake was last published."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _drawn(rows: pl.DataFrame, key: str, count: int) -> pl.DataFrame:
    """The same rows each time, whatever their order."""
    import polars as pl

    return rows.sort(pl.col(key).hash(seed=1), key).head(count)


def _looked_up_by(answers: pl.DataFrame, releases: Sequence[str]) -> pl.DataFrame:
    """The answers of these Bentos that looked something up; a caller who brings the features asks for none."""
    import polars as pl

    looked_up = (pl.col("event_times") != "{}") | (pl.col("fallbacks") != "[]")
    return answers.filter(pl.col("release").is_in(releases), looked_up)


def _answered(plan: FeaturePlan, answer: Mapping[str, Any]) -> Request:
    event_times, fallbacks = json.loads(answer["event_times"]), json.loads(answer["fallbacks"])
    return Request(
        id=answer["request_id"],
        at=answer["at"],
        answered=answer["logged_at"],
        row={name: answer[name] for name in (*plan.join_keys, *(field.name for field in plan.request))},
        values={name: answer.get(name) for name in plan.inputs},
        event_times={view: microseconds(datetime.fromisoformat(at)) for view, at in event_times.items()},
        reasons={fallback["view"]: fallback["reason"] for fallback in fallbacks},
    )


def _reads_alike(plan: FeaturePlan, tag: str, bentos: BentoStore) -> bool:
    """A Bento that is gone, or broken, says nothing about this one."""
    try:
        return reading(plan_of(bentos.path(tag))) == reading(plan)
    except (UnknownBentoError, BrokenBundleError):
        return False


# -- sampled --------------------------------------------------------------------------------------------------


def sampled(
    model: ModelPipeline,
    plan: FeaturePlan,
    rows: int,
    lake: Lake,
    store: PackedStore,
    published: datetime | None = None,
) -> list[Request]:
    """Events of the labels, drawn by a hash of their key, looked up at the moment up to which the store is published.

    That is `published`, if known, or the newest event that is online. None where no view of the plan has a row online.
    """
    if not any(store.count(view.table) for view in plan.views):
        return []
    days = lake.partitions(asset_key(model.labels))
    newest = _newest_online(model, plan, lake, store, _spread(days))
    at = max(newest, published) if published else newest
    events = _drawn(_events_near(model, lake, days, at, rows), model.labels.key, rows)
    asked = events.drop(model.labels.key, EVENT_TIMESTAMP).to_dicts()
    looked = look_up(plan, store, asked, at)
    now = datetime.now(UTC)
    ids = [str(one) for one in events[model.labels.key]]
    return [_looked_up(plan, *one, at, now) for one in zip(ids, asked, looked, strict=True)]


def published_as_of(instance: dg.DagsterInstance, model: ModelPipeline) -> datetime | None:
    """The latest moment that an online asset of the model was published as of; None where none was told of one."""
    events = [instance.get_latest_materialization_event(online_key(item.view)) for item in model.selections]
    told = [
        event.asset_materialization.metadata.get("as_of") for event in events if event and event.asset_materialization
    ]
    moments = [str(value.value) for value in told if value is not None]
    return max((datetime.fromisoformat(moment) for moment in moments if moment != "None"), default=None)


def _looked_up(
    plan: FeaturePlan, request_id: str, row: Mapping[str, Any], looked: Looked, at: datetime, now: datetime
) -> Request:
    values = dict(zip(plan.inputs, looked.values, strict=True))
    reasons = {fallback.view: fallback.reason for fallback in looked.fallbacks}
    return Request(request_id, at, now, row, values, looked.event_times, reasons)


def _events_near(model: ModelPipeline, lake: Lake, days: Sequence[str], at: datetime, rows: int) -> pl.DataFrame:
    """Those of the days up to `at`, the nearest first, until there are enough; then of the days after it."""
    import polars as pl

    day = f"{at:%Y-%m-%d}"
    nearest = [*(one for one in reversed(days) if one <= day), *(one for one in days if one > day)]
    found, count = [], 0
    for one in nearest:
        found.append(_events(model, lake, [one]))
        count += found[-1].height
        if count >= rows:
            break
    return pl.concat(found) if found else _events(model, lake, [])


def _events(model: ModelPipeline, lake: Lake, days: Sequence[str]) -> pl.DataFrame:
    """What could be asked about: events whose keys are all known."""
    labels = model.labels
    columns = list(dict.fromkeys([labels.key, EVENT_TIMESTAMP, *labels.join_keys, *labels.request]))
    return lake.scan(asset_key(labels), days or None).select(columns).drop_nulls(labels.join_keys).collect()


def _newest_online(
    model: ModelPipeline, plan: FeaturePlan, lake: Lake, store: PackedStore, days: Sequence[str]
) -> datetime:
    """The newest event online, of the keys that events of `days` have; of the events where none of them is online."""
    events = _events(model, lake, days)
    online = [
        row[0]
        for view in plan.views
        for row in store.read(view.table, events.select(view.join_keys).unique().rows() if view.join_keys else [()])
        if row is not None
    ]
    newest: Any = events[EVENT_TIMESTAMP].max()
    return moment_of(max(online)) if online else newest


def _spread(days: Sequence[str], count: int = 5) -> list[str]:
    """A few of the days, evenly, the newest among them."""
    step = max(len(days) // count, 1)
    return sorted(days[::-1][::step][:count])


def keys_of(requests: Iterable[Request], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The distinct keys that requests were about, in order."""
    return list(dict.fromkeys(tuple(request.row[name] for name in names) for request in requests))
