"""Impact: what a change of a view or a feature would reach, and what it is made from.

Downstream are tables and features on demand, by their column lineage; models, by what they declare; and versions,
Bentos and endpoints, by the plans they carry: what serves today may be of an older declaration. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.claims import columns_of
from mlops_assets.column_lineage import Column, UnknownLineageError, column_lineage
from mlops_assets.declarations import Labels, ModelPipeline, OnDemandView, Source
from mlops_assets.discovery.card import Document, Stores, endpoints, features_read
from mlops_assets.discovery.contract import AnyView, Read, bundle_of, reads_of, registered_name

if TYPE_CHECKING:
    from mlops_assets.catalog import Table
    from resources.lake import Lake
    from resources.mlflow import Version

VERSIONS = 20  # of a model, newest first, whose plans are read
DOWNSTREAM_LINKS = ("training_set", "predictions", "scores", "quality_report", "drift_report", "performance_report")


def impact(view: AnyView, features: tuple[str, ...], stores: Stores) -> Document:
    """What the features are made from, and everything that rests on them, column by column."""
    graph = _Columns(stores)
    touched = graph.downstream({Column(view.id, name) for name in features})
    return {
        "view": view.id,
        "features": list(features),
        "made_from": graph.told(graph.upstream({Column(view.id, name) for name in features})),
        "tables": graph.told(column for column in touched if column.table != view.id),
        "models": _models(touched, stores),
        "untraced": sorted(graph.untraced),
    }


class _Columns:
    """The columns of all tables and what each rests on, traced when first asked."""

    def __init__(self, stores: Stores) -> None:
        self._stores, self._traced = stores, dict[str, dict[str, frozenset[Column]]]()
        self.untraced: set[str] = set()

    def upstream(self, columns: Iterable[Column]) -> set[Column]:
        """Every column that these rest on, down to the sources."""
        found, new = set[Column](), set(columns)
        while new := {origin for item in new for origin in self._origins(item.table).get(item.name, ())} - found:
            found |= new
        return found

    def downstream(self, columns: Iterable[Column]) -> set[Column]:
        """These, and every column of a table that rests on one of them."""
        found, tables = set(columns), [*self._stores.catalog.tables, *self._stores.catalog.on_demand]
        while new := {item for table in tables for item in self._resting(table, found)} - found:
            found |= new
        return found

    def told(self, columns: Iterable[Column]) -> list[Document]:
        """The columns by table."""
        names: dict[str, list[str]] = {}
        for item in sorted(columns):
            names.setdefault(item.table, []).append(item.name)
        catalog = self._stores.catalog
        kinds = {**catalog.tables, **catalog.on_demand}
        return [{"table": table, "kind": kinds[table].kind, "columns": listed} for table, listed in names.items()]

    def _resting(self, table: str, on: set[Column]) -> Iterator[Column]:
        return (Column(table, name) for name, origins in self._origins(table).items() if origins & on)

    def _origins(self, table: str) -> dict[str, frozenset[Column]]:
        if table not in self._traced:
            computed = self._stores.catalog.on_demand.get(table)
            self._traced[table] = (
                _computed(computed) if computed else self._of_table(self._stores.catalog.tables[table])
            )
        return self._traced[table]

    def _of_table(self, table: Table) -> dict[str, frozenset[Column]]:
        """As Polars tells; where its function cannot be followed, every column of what it reads."""
        catalog = self._stores.catalog
        try:
            return column_lineage(table, catalog, _newest_rows(table, catalog, self._stores.lake))
        except UnknownLineageError:
            self.untraced.add(table.id)
            everything = frozenset(
                Column(item.id, name) for _, item in catalog.inputs(table) for name in columns_of(item)
            )
            return dict.fromkeys(columns_of(table), everything)


def _newest_rows(table: Table, catalog: Catalog, lake: Lake) -> dict[str, Any]:
    """The newest published partition of each input, where all have one: for functions that need rows to be followed."""
    if isinstance(table, Source):
        return {}
    from resources.lake import UNPARTITIONED

    keys = {name: asset_key(item) for name, item in catalog.inputs(table)}
    newest = {name: (lake.partitions(key) or [UNPARTITIONED])[-1] for name, key in keys.items()}
    if not all(lake.exists(keys[name], partition) for name, partition in newest.items()):
        return {}
    return {name: lake.scan(keys[name], [partition]) for name, partition in newest.items()}


def _computed(view: OnDemandView) -> dict[str, frozenset[Column]]:
    """Of each feature on demand, the columns that its expression names."""
    places = {
        name: Column(read.id if isinstance(read, Labels) else read.view.id, name)
        for read in view.reads
        for name in (read.request if isinstance(read, Labels) else read.features)
    }
    return {
        name: frozenset(places[root] for root in expression.meta.root_names() if root in places)
        for name, expression in view.expressions().items()
    }


def _models(touched: set[Column], stores: Stores) -> list[Document]:
    """Every model that reads a touched column today, or of which a version or a Bento does."""
    catalog, releases = stores.catalog, stores.releases
    found = [_model(name, touched, stores) for name in sorted({*catalog.models, *releases.models()})]
    return [document for document in found if any(document[part] for part in ("reads", "versions", "bentos"))]


def _model(name: str, touched: set[Column], stores: Stores) -> Document:
    declared = stores.catalog.models.get(name)
    reads = sorted(_declared_columns(declared) & touched) if declared else []
    bentos = {tag: _touched(reads_of(stores.bentos.path(tag)), touched) for tag in stores.bentos.list(name)}
    answering = [item for item in endpoints(stores.releases) if item["model"] == name]
    return {
        "model": name,
        "declared": declared is not None,
        "reads": [str(column) for column in reads],
        "versions": list(_versions(name, touched, stores)),
        "bentos": {tag: columns for tag, columns in bentos.items() if columns},
        "endpoints": [
            {key: item[key] for key in ("route", "release", "version", "role", "weight")}
            for item in answering
            if bentos.get(item["release"])
        ],
        "assets": [f"{name}/{link}" for link in DOWNSTREAM_LINKS] if reads else [],
    }


def _declared_columns(model: ModelPipeline) -> set[Column]:
    """What the model is trained on: features, the caller's values, the truth."""
    labels = {Column(model.labels.id, name) for name in (*model.labels.request, model.label)}
    return labels | {Column(view, name) for view, names in features_read(model).items() for name in names}


def _touched(reads: Iterable[Read], touched: set[Column]) -> list[str]:
    columns = {Column(read.view, name) for read in reads for name in read.features}
    return [str(column) for column in sorted(columns & touched)]


def _versions(model: str, touched: set[Column], stores: Stores) -> Iterator[Document]:
    """The newest versions that read a touched column, and which of them is the champion."""
    from resources.champions import ALIAS

    mlflow, name = stores.promotion.mlflow, registered_name(model)
    versions = mlflow.versions(name)[:VERSIONS]
    champion = mlflow.alias(name, ALIAS) if versions else None
    for version in versions:
        if columns := _touched(reads_of(bundle_of(stores.promotion, version)), touched):
            yield {**_told(version), "champion": version.version == champion, "features": columns}


def _told(version: Version) -> Document:
    return {
        "version": version.version,
        **{name: version.tags[name] for name in ("cutoff", "gate", "bento") if name in version.tags},
    }
