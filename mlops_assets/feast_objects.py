"""Native Feast objects compiled from declarations, so that any Feast client reads what is published here.

A view is `<team>__<view>`, over the Parquet files of its offline asset as they lie in the lake; a
model's inputs are the feature service `<team>__<model>`. Importing Feast takes ten seconds: it is imported
in `compile`, and only what talks to Feast calls that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import asset_key
from mlops_assets.declarations import EVENT_TIMESTAMP, DeclarationError, Entity, FeatureView, ModelPipeline
from mlops_assets.fields import Field

if TYPE_CHECKING:
    import feast

    from resources.lake import Lake


def feast_name(declaration: FeatureView | ModelPipeline) -> str:
    """`<team>__<name>`; Feast's names know no slash."""
    return f"{declaration.team}__{declaration.name}"


def compile(  # noqa: A001  called as `feast_objects.compile`, never imported bare
    views: Iterable[FeatureView], models: Iterable[ModelPipeline], lake: Lake
) -> list[Any]:
    """Entities, sources over the lake's files, feature views and feature services."""
    views, models = list(views), list(models)
    entities = {name: _entity(entity) for name, entity in _entities(views).items()}
    tables = {view.id: _view(view, entities, lake) for view in views}
    sources = [table.batch_source for table in tables.values()]
    return [*entities.values(), *sources, *tables.values(), *(_service(model, tables) for model in models)]


def _entities(views: Iterable[FeatureView]) -> dict[str, Entity]:
    """The views' entities by name; Feast has one of each name in a project."""
    found: dict[str, Entity] = {}
    for view in views:
        for entity in view.entities:
            if found.setdefault(entity.name, entity) != entity:
                raise DeclarationError.of(
                    view.title,
                    "entities",
                    entity,
                    found[entity.name],
                    "Share one Entity or rename one.",
                )
    return found


def _entity(entity: Entity) -> feast.Entity:
    import feast
    from feast import types

    return feast.Entity(
        name=entity.name,
        join_keys=[entity.join_key],
        value_type=getattr(types, entity.dtype.dtype).to_value_type(),
        description=entity.description,
    )


def _view(view: FeatureView, entities: Mapping[str, feast.Entity], lake: Lake) -> feast.FeatureView:
    import feast
    from feast.data_format import ParquetFormat

    owner = ", ".join(view.owners)
    return feast.FeatureView(
        name=feast_name(view),
        entities=[entities[entity.name] for entity in view.entities],
        ttl=view.ttl or timedelta(0),
        schema=[_field(name, field) for name, field in view.columns.items() if name != EVENT_TIMESTAMP],
        source=feast.FileSource(
            name=feast_name(view),
            path=f"{lake.path(asset_key(view)).parent}/",
            file_format=ParquetFormat(),
            timestamp_field=EVENT_TIMESTAMP,
            description=f"Offline rows of {view.title}, one Parquet file per partition",
            owner=owner,
        ),
        online=view.online,
        description=view.description,
        tags=_tags(team=view.team, ttl=view.ttl, owner=owner, online=str(view.online).lower()),
        owner=owner,
    )


def _field(name: str, field: Field) -> feast.Field:
    import feast

    tags = _tags(unit=field.unit, minimum=field.minimum, maximum=field.maximum)
    return feast.Field(name=name, dtype=_feast_type(field), description=field.description, tags=tags)


def _feast_type(field: Field) -> Any:
    from feast import types

    return types.Array(types.Float64) if field.dtype == "Float64Array" else getattr(types, field.dtype)


def _service(model: ModelPipeline, tables: Mapping[str, feast.FeatureView]) -> feast.FeatureService:
    import feast

    return feast.FeatureService(
        name=feast_name(model),
        features=[tables[item.view.id][list(item.features)] for item in model.selections],
        description=model.description or f"Inputs of {model.title}",
        tags=_tags(team=model.team, label=model.label, task=model.task),
        owner=", ".join(model.owners),
    )


def _tags(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "")}
