"""Discovery: what there is to search, what a feature view is, how fresh it is, and who uses it.

Each answer is a document of plain values, which `mlops features ... --json` prints as it is and without `--json` as
tables. Nothing is written. What is in use is told by the plans in Bentos and release records, never by today's
declarations alone: a model in production may be of yesterday's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import Catalog, UnknownDeclarationError, asset_key
from mlops_assets.declarations import FeatureView, ModelPipeline, OnDemandView
from mlops_assets.discovery.contract import AnyView, Read, reads_of, views
from mlops_assets.discovery.search import Entry

if TYPE_CHECKING:
    import dagster as dg

    from mlops_assets.promotion import Promotion
    from resources.bentos import BentoStore
    from resources.lake import Lake
    from resources.releases import ReleaseStore

Document = dict[str, Any]


class UnknownFeatureError(UnknownDeclarationError):
    """A feature was asked for that its view does not have."""


@dataclass(frozen=True)
class Stores:
    """Where the answers are found."""

    catalog: Catalog
    lake: Lake
    promotion: Promotion

    @property
    def bentos(self) -> BentoStore:
        return self.promotion.bentos

    @property
    def releases(self) -> ReleaseStore:
        return self.promotion.releases


def asked(catalog: Catalog, reference: str) -> tuple[AnyView, tuple[str, ...]]:
    """The view and the features of `team/view` or `team/view:a,b`. Raises UnknownDeclarationError."""
    name, _, listed = reference.partition(":")
    known = views(catalog)
    if name not in known:
        raise UnknownDeclarationError.of("feature view", name, known)
    view = known[name]
    features = tuple(item.strip() for item in listed.split(",")) if listed else tuple(view.schema)
    for feature in features:
        if feature not in view.schema:
            raise UnknownFeatureError.of(f"feature of {view.title}", feature, view.schema)
    return view, features


def features_read(model: ModelPipeline) -> dict[str, tuple[str, ...]]:
    """By view, what the declared model reads: its inputs, what those on demand are computed from, what stands in."""
    stand_ins = {item.view.stand_in.id: item.features for item in model.selections if item.view.stand_in}
    return {**{item.view.id: item.features for item in (*model.selections, *model.on_demand)}, **stand_ins}


def used_by(catalog: Catalog, view: AnyView) -> dict[str, tuple[str, ...]]:
    """By declared model, the features of the view that it reads."""
    read = {model.id: features_read(model).get(view.id, ()) for model in catalog.models.values()}
    return {name: features for name, features in read.items() if features}


def entries(catalog: Catalog) -> list[Entry]:
    """Every view and feature as search finds it."""
    return [entry for view in views(catalog).values() for entry in _entries(view, used_by(catalog, view))]


def _entries(view: AnyView, users: Mapping[str, tuple[str, ...]]) -> Iterator[Entry]:
    owner, words = ", ".join(view.owners) or f"team:{view.team}", _words(view)
    yield Entry(view.id, view.kind, view.name, "", view.description, view.id, owner, tuple(users), words)
    for name, column in view.schema.items():
        yield Entry(
            id=f"{view.id}:{name}",
            kind="feature",
            name=name,
            type=column.dtype,
            meaning=column.meaning,
            view=view.id,
            owner=owner,
            used_by=tuple(model for model, features in users.items() if name in features),
            words=words,
        )


def _words(view: AnyView) -> tuple[str, ...]:
    """What a view and each of its features are found by beside their own words."""
    if isinstance(view, OnDemandView):
        return (view.team, view.kind, *view.inputs)
    described = [word for item in view.entities for word in (item.name, item.join_key)]
    return (view.team, "online" if view.online else "offline", *described)


def shown(view: AnyView, stores: Stores, instance: dg.DagsterInstance, now: datetime | None = None) -> Document:
    """Schema, keys, freshness, statistics and uses of a view."""
    users = used_by(stores.catalog, view)
    document: Document = {
        "view": view.id,
        "kind": view.kind,
        "description": view.description,
        "owners": list(view.owners) or [f"team:{view.team}"],
        "schema": {name: _field(column) for name, column in view.schema.items()},
        "used_by": {"models": _listed(users), **_released(view.id, stores)},
    }
    if isinstance(view, OnDemandView):
        return {**document, "computed_from": list(view.inputs)}
    return {**document, **_stored(view, stores.lake, instance, now or datetime.now(UTC))}


def _field(column: Any) -> Document:
    """What is declared of a feature; what is left out is not shown."""
    given = {name: getattr(column, name) for name in ("description", "unit", "minimum", "maximum", "size")}
    return {"type": column.dtype, **{name: value for name, value in given.items() if value not in (None, "")}}


def _stored(view: FeatureView, lake: Lake, instance: dg.DagsterInstance, now: datetime) -> Document:
    from mlops_assets.discovery.statistics import statistics
    from resources.lake import NotMaterializedError, SchemaDriftError, UnreadableFileError

    keys = {item.join_key: {"type": item.dtype.dtype, "entity": item.name} for item in view.entities}
    document: Document = {"keys": keys, "ttl_seconds": view.ttl.total_seconds() if view.ttl else None}
    try:
        found = statistics(lake, view)
    except (NotMaterializedError, SchemaDriftError, UnreadableFileError) as problem:
        return {**document, "statistics": {"none_because": str(problem)}, **_faces(view, None, instance, now)}
    numbers = {"partitions": list(found.partitions), "rows": found.rows, "features": plain(found.features)}
    return {**document, "statistics": numbers, **_faces(view, found.newest, instance, now)}


def _faces(view: FeatureView, newest: datetime | None, instance: dg.DagsterInstance, now: datetime) -> Document:
    """How old are the rows that training reads, and those that endpoints read."""
    from mlops_assets.links.online import online_key

    offline = _published(asset_key(view), instance, now, by_policy=view.partitions is not None)
    faces: Document = {"offline": {**_aged(newest, view.ttl, now), **offline}}
    if view.online:
        online = _published(online_key(view), instance, now, by_policy=True)
        faces["online"] = {**_aged(_moment(online.get("newest")), view.ttl, now), **online}
    return {"freshness": faces}


def _aged(newest: datetime | None, ttl: timedelta | None, now: datetime) -> Document:
    """The newest event, how long ago it was, and whether a reader of this moment still sees it."""
    if newest is None:
        return {"newest_event": None}
    age = now - newest
    return {
        "newest_event": newest.isoformat(),
        "age_seconds": round(age.total_seconds()),
        "within_ttl": ttl is None or age <= ttl,
    }


def _published(key: dg.AssetKey, instance: dg.DagsterInstance, now: datetime, *, by_policy: bool) -> Document:
    """The last materialization, and where it stands by the asset's freshness policy."""
    event = instance.get_latest_materialization_event(key)
    if event is None or event.asset_materialization is None:
        return {"last_materialized": None}
    at = datetime.fromtimestamp(event.timestamp, UTC)
    told = {name: str(item.value) for name, item in event.asset_materialization.metadata.items()}
    facts = {name: told[name] for name in ("newest", "as_of") if told.get(name, "None") != "None"}
    standing = {"policy": _standing(now - at)} if by_policy else {}
    partition = {"partition": event.asset_materialization.partition} if event.asset_materialization.partition else {}
    return {"last_materialized": at.isoformat(timespec="seconds"), **partition, **standing, **facts}


def _standing(age: timedelta) -> str:
    from mlops_assets.links.spec import DAILY_FRESHNESS

    policy: Any = DAILY_FRESHNESS
    if age > policy.fail_window.to_timedelta():
        return "overdue"
    return "late" if age > policy.warn_window.to_timedelta() else "fresh"


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _released(view: str, stores: Stores) -> Document:
    """The Bentos that read the view, and the endpoints by their current release record."""
    reading = _reading_bentos(stores.bentos, view)
    answering = [item for item in endpoints(stores.releases) if item["release"] in reading]
    return {
        "bentos": _listed(reading),
        "endpoints": [{**item, "features": list(reading[item["release"]])} for item in answering],
    }


def _reading_bentos(bentos: BentoStore, view: str) -> dict[str, tuple[str, ...]]:
    """By tag, oldest first, the features of the view that the Bento reads."""
    found = {tag: _features_of(reads_of(bentos.path(tag)), view) for tag in bentos.list()}
    return {tag: features for tag, features in found.items() if features}


def _features_of(reads: Iterable[Read], view: str) -> tuple[str, ...]:
    return tuple(name for read in reads if read.view == view for name in read.features)


def endpoints(releases: ReleaseStore) -> Iterator[Document]:
    """Each variant of each model's release record."""
    for model in releases.models():
        record = releases.read(model)
        for variant in record.variants if record else ():
            yield {"model": model, "route": f"/{model}/predict", **asdict(variant)}


def _listed(features: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    return {name: list(items) for name, items in features.items()}


def plain(value: Any) -> Any:
    """The value as JSON has it: times in ISO's words."""
    return json.loads(json.dumps(value, default=str))
