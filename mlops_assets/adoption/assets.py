"""A registry as Dagster's: sources, views and services as external assets, an online asset per view, and checks.

Keys are `<project>/source/<name>`, `<project>/offline/<view>` (or `on_demand`, `labels`), `<project>/online/<view>` and
`<project>/service/<name>`: Feast lets a source, a view and a service share a name. Built from `Registered` alone;
Feast and the repository's code first run when an online asset does.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.definitions.utils import is_valid_owner
from dagster._utils.tags import is_valid_strict_tag_value, is_valid_tag_key

from mlops_assets.adoption import online, source_checks
from mlops_assets.adoption.online import Window
from mlops_assets.adoption.registry import Column, Projection, Registered, Service, Source, View
from mlops_assets.adoption.repository import FeastRepository
from mlops_assets.adoption.source_checks import UnreadableSourceError
from mlops_assets.links import spec

PLACES = {"batch": "offline", "stream": "offline", "on_demand": "on_demand", "labels": "labels"}
TITLES = {"batch": "Feature view", "stream": "Stream view", "on_demand": "On-demand view", "labels": "Labels"}
Thing = Source | View | Service


@dataclass(frozen=True)
class Adopted:
    """A repository with what was read of it, and what its new home adds: default owners, and when to materialize."""

    repository: FeastRepository
    registered: Registered
    owners: Sequence[str] = ()
    cron: str | None = None

    def key(self, place: str, name: str) -> dg.AssetKey:
        return dg.AssetKey([self.repository.project, place, name])

    def source_key(self, name: str) -> dg.AssetKey:
        return self.key("source", name)

    def view_key(self, name: str) -> dg.AssetKey:
        return self.key(PLACES[self.registered.views[name].kind], name)

    def definitions(self) -> dg.Definitions:
        known = self.registered
        return dg.Definitions(
            assets=[
                *(self._source(source) for source in known.sources.values()),
                *(self._view(view) for view in known.views.values()),
                *(self._online(view) for view in known.views.values() if view.online),
                *(self._service(service) for service in known.services.values()),
            ],
            asset_checks=[
                *(self._source_check(source) for source in known.sources.values() if source.kind == "file"),
                *(self._view_checks(view, source) for view, source in self._with_rows()),
            ],
            jobs=self._jobs(),
        )

    def _jobs(self) -> list[Any]:
        """Bring every view online whose rows pass their checks."""
        known = self.registered
        views = [view for view in known.views.values() if view.online]
        checked = [*map(self.source_key, known.sources), *map(self.view_key, known.views)]
        if not views:
            return []
        return [
            dg.define_asset_job(
                f"{self._prefix}__online",
                selection=dg.AssetSelection.assets(*(self.key("online", view.name) for view in views))
                | dg.AssetSelection.checks_for_assets(*checked),
                description=f"Check the sources of {self.repository.project}, then bring its feature views online.",
            )
        ]

    def _with_rows(self) -> Iterator[tuple[View, Source]]:
        for view in self.registered.views.values():
            if view.batch in self.registered.sources:
                yield view, self.registered.sources[view.batch]

    # -- what there is

    def _source(self, source: Source) -> dg.AssetSpec:
        columns = {"dagster/column_schema": table_schema(source.columns)} if source.columns else {}
        place = {"feast/location": source.location} if source.location else {}
        return self._spec(
            self.source_key(source.name),
            source,
            "sources",
            f"Data source of kind {source.kind}.",
            deps=[self.source_key(source.batch)] if source.batch in self.registered.sources else [],
            kinds={"feast", source.format or source.kind},
            metadata={
                **columns,
                **place,
                "feast/source_kind": source.kind,
                "feast/timestamp_field": source.timestamp,
                "feast/created_timestamp_column": source.created,
                "feast/field_mapping": dict(source.mapping),
            },
        )

    def _view(self, view: View) -> dg.AssetSpec:
        inputs = [self.view_key(projection.view) for projection in view.inputs if self._knows(projection)]
        return self._spec(
            self.view_key(view.name),
            view,
            "labels" if view.kind == "labels" else "features",
            f"{TITLES[view.kind]} of {', '.join(view.entities) or 'no entity'}: {len(view.features)} columns.",
            deps=[*(self.source_key(name) for name in view.sources if name in self.registered.sources), *inputs],
            kinds={"feast"},
            metadata={
                **self._table(view.columns, self._view_lineage(view)),
                "feast/kind": view.kind,
                "feast/entities": ", ".join(view.entities),
                "feast/ttl": str(view.ttl or "endless"),
            },
        )

    def _service(self, service: Service) -> dg.AssetSpec:
        columns = {name: column for name, column, _ in self._served(service)}
        lineage = {name: [(self.view_key(view), column.name)] for name, column, view in self._served(service)}
        schema = [Column(name, column.type, column.description) for name, column in columns.items()]
        return self._spec(
            self.key("service", service.name),
            service,
            "services",
            f"Feature service: {len(schema)} features of {len(service.projections)} views.",
            deps=[self.view_key(projection.view) for projection in service.projections if self._knows(projection)],
            kinds={"feast"},
            metadata=self._table(schema, lineage),
        )

    def _spec(
        self,
        key: dg.AssetKey,
        thing: Thing,
        stage: str,
        told: str,
        *,
        deps: Iterable[dg.AssetKey],
        kinds: set[str],
        metadata: Mapping[str, Any],
    ) -> dg.AssetSpec:
        return dg.AssetSpec(
            key,
            deps=list(dict.fromkeys(deps)),
            description=thing.description or told,
            group_name=f"{self._prefix}_{stage}",
            owners=self._owners(thing),
            kinds=kinds,
            tags=self._tags(thing, stage),
            metadata={**metadata, **self._origin(thing)},
        )

    @property
    def _prefix(self) -> str:
        return dg.AssetKey(self.repository.project).to_python_identifier()

    def _owners(self, thing: Thing) -> list[str]:
        """Feast takes any text for an owner, Dagster an address or a team."""
        if thing.owner:
            return [thing.owner if is_valid_owner(thing.owner) else f"team:{thing.owner}"]
        return spec.owners(self.owners, self.repository.project)

    def _tags(self, thing: Thing, stage: str) -> dict[str, str]:
        """Those that Dagster can carry; all of them are in the metadata."""
        fit = {k: v for k, v in thing.tags.items() if is_valid_tag_key(k) and is_valid_strict_tag_value(v)}
        return {**fit, "feast_project": self.repository.project, "stage": stage}

    def _origin(self, thing: Thing) -> dict[str, Any]:
        said = {"feast/owner": thing.owner} if thing.owner else {}
        tags = {"feast/tags": dict(thing.tags)} if thing.tags else {}
        return {**said, **tags, "feast/name": thing.name, "feast/registry": self.repository.known_from}

    # -- what is made of what

    def _table(
        self, columns: Iterable[Column], lineage: Mapping[str, Sequence[tuple[dg.AssetKey, str]]]
    ) -> dict[str, Any]:
        told = {"dagster/column_schema": table_schema(columns)}
        return told | ({"dagster/column_lineage": column_lineage(lineage)} if lineage else {})

    def _view_lineage(self, view: View) -> dict[str, list[tuple[dg.AssetKey, str]]]:
        """Of a view that takes columns as they are; which columns a transform reads, no registry says."""
        if view.transformed or view.batch not in self.registered.sources:
            return {}
        source = self.registered.sources[view.batch]
        return {column.name: [(self.source_key(source.name), source.column(column.name))] for column in view.columns}

    def _served(self, service: Service) -> Iterator[tuple[str, Column, str]]:
        """The features of a service by the names that its answers have, short ones where that is clear."""
        known = [projection for projection in service.projections if self._knows(projection)]
        names = [column.name for projection in known for column in projection.features]
        for projection in known:
            for column in projection.features:
                short = names.count(column.name) == 1
                yield column.name if short else f"{projection.view}__{column.name}", column, projection.view

    def _knows(self, projection: Projection) -> bool:
        return projection.view in self.registered.views

    # -- what can be run

    def _online(self, view: View) -> dg.AssetsDefinition:
        key, stored = self.key("online", view.name), self.view_key(view.name)
        source = None if view.transformed else self.registered.sources.get(view.batch)
        lineage = column_lineage({column.name: [(stored, column.name)] for column in view.columns})
        claim = dg.AssetCheckSpec("answers_newest_row", asset=key, blocking=True, description=online.PROMISE)

        @dg.asset(
            key=key,
            deps=[stored],
            description=f"The newest row per {', '.join(view.entities) or 'view'} of {view.name}, online in Feast.",
            group_name=f"{self._prefix}_online",
            owners=self._owners(view),
            kinds={"feast"},
            tags=self._tags(view, "online"),
            metadata={**self._table(view.columns, {}), **self._origin(view), "dagster/column_lineage": lineage},
            automation_condition=at_each_tick(self.cron) if self.cron else None,
            check_specs=[claim] if source else [],
        )
        def materialized(config: Window) -> Iterator[Any]:
            with self.repository.store() as store:
                done = online.materialize(self.repository, store, view, config)
                told: dict[str, Any] = {
                    "feast/start": str(done.start),
                    "feast/end": str(done.end),
                    "feast/already_there": done.done,
                }
                yield dg.MaterializeResult(metadata={**told, "dagster/column_lineage": lineage})
                if source:
                    frame = source_checks.rows_of(self.repository, view, source)
                    newest = source_checks.newest_rows(frame, view, source, done.end)
                    yield spec.check_result(key, online.answers_newest_row(store, view, newest, datetime.now(UTC)))

        return materialized

    def _source_check(self, source: Source) -> dg.AssetChecksDefinition:
        key = self.source_key(source.name)

        @dg.asset_check(asset=key, name="reachable", blocking=True, description=source_checks.REACHABLE)
        def reachable() -> dg.AssetCheckResult:
            return spec.check_result(key, source_checks.reachable(self.repository, source))

        return reachable

    def _view_checks(self, view: View, source: Source) -> dg.AssetChecksDefinition:
        key = self.view_key(view.name)
        names = {name: name not in source_checks.WARNINGS for name in source_checks.PROMISES}

        @dg.multi_asset_check(
            name=f"{key.to_python_identifier()}__rows", specs=spec.check_specs(key, names, source_checks.PROMISES)
        )
        def rows() -> Iterator[dg.AssetCheckResult]:
            for claim in self._judged(view, source):
                yield spec.check_result(key, claim)

        return rows

    def _judged(self, view: View, source: Source) -> list[Any]:
        try:
            frame = source_checks.rows_of(self.repository, view, source)
            return source_checks.view_claims(frame, view, source, datetime.now(UTC))
        except UnreadableSourceError as error:
            return source_checks.unread_claims(error)


def at_each_tick(cron: str) -> dg.AutomationCondition[Any]:
    """Once a tick, whatever happened to the sources: Dagster does not see them change."""
    tick: Any = dg.AutomationCondition.cron_tick_passed(cron)
    return tick.since_last_handled() & ~dg.AutomationCondition.in_progress()


def table_schema(columns: Iterable[Column]) -> dg.TableSchema:
    return dg.TableSchema(
        [dg.TableColumn(column.name, column.type, description=column.description or None) for column in columns]
    )


def column_lineage(made_of: Mapping[str, Sequence[tuple[dg.AssetKey, str]]]) -> dg.TableColumnLineage:
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(asset_key=key, column_name=column) for key, column in columns]
            for name, columns in made_of.items()
        }
    )
