"""Native Feast objects compiled from declarations, so that any Feast client reads what is published here.

A view is `<team>__<view>`, over the Parquet files of its offline asset as they lie in the lake; a
model's inputs are the feature service `<team>__<model>`. An on-demand view becomes Feast's own, whose function
carries the serialised expressions: a client needs Polars to run it, and nothing of ours.

Importing Feast takes ten seconds: it is imported in `compile`, and only what talks to Feast calls that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import asset_key
from mlops_assets.declarations import (
    EVENT_TIMESTAMP,
    DeclarationError,
    Entity,
    FeatureSelection,
    FeatureView,
    ModelPipeline,
    OnDemandView,
)
from mlops_assets.fields import Field

if TYPE_CHECKING:
    import feast
    import pandas as pd

    from mlops_assets.serving.transform import Transform
    from resources.lake import Lake


def feast_name(declaration: FeatureView | OnDemandView | ModelPipeline) -> str:
    """`<team>__<name>`; Feast's names know no slash."""
    return f"{declaration.team}__{declaration.name}"


def compile(  # noqa: A001  called as `feast_objects.compile`, never imported bare
    views: Iterable[FeatureView], models: Iterable[ModelPipeline], lake: Lake
) -> list[Any]:
    """Entities, sources over the lake's files, feature views, the models' on-demand views and feature services."""
    views, models = list(views), list(models)
    computed = {item.view.id: item.view for model in models for item in model.on_demand}
    entities = {name: _entity(entity) for name, entity in _entities(views).items()}
    tables = {view.id: _view(view, entities, lake) for view in views}
    sources = [table.batch_source for table in tables.values()]
    on_demand = {name: _on_demand(view, tables) for name, view in computed.items()}
    services = [_service(model, {**tables, **on_demand}) for model in models]
    return [*entities.values(), *sources, *tables.values(), *on_demand.values(), *services]


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


def _on_demand(view: OnDemandView, tables: Mapping[str, feast.FeatureView]) -> feast.OnDemandFeatureView:
    import feast

    from mlops_assets.serving.transform import Transform

    owner = ", ".join(view.owners)
    stored = [tables[item.view.id][list(item.features)] for item in view.needs]
    return feast.OnDemandFeatureView(
        name=feast_name(view),
        # Feast refuses a field that is more than it infers, a name and a type: what they mean is in the tags.
        schema=[_field(name, Field(field.dtype)) for name, field in view.schema.items()],
        sources=[*stored, *_asked(view)],
        udf=_function(Transform.of(view.selection)),
        udf_string=f"Polars expressions of {view.id}: {', '.join(view.inputs)} -> {', '.join(view.schema)}",
        mode="pandas",
        description=view.description,
        tags=_tags(team=view.team, owner=owner, **{name: field.meaning for name, field in view.schema.items()}),
        owner=owner,
    )


def _asked(view: OnDemandView) -> list[feast.RequestSource]:
    """What only the caller knows, the moment asked about included."""
    import feast

    stored = {name for item in view.needs for name in item.features}
    asked = {name: field for name, field in view.input_fields.items() if name not in stored}
    schema = [_field(name, field) for name, field in asked.items()]
    return [feast.RequestSource(name=f"{feast_name(view)}__request", schema=schema)] if asked else []


def _function(transform: Transform) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A function that Feast can pickle by value: all that it knows is text."""
    types: dict[str, str] = dict(transform.inputs)
    features = dict(transform.features)

    def on_demand(rows):  # type: ignore[no-untyped-def]
        from base64 import b64decode
        from io import BytesIO

        import polars as pl

        kinds = {
            "Bool": pl.Boolean,
            "Int64": pl.Int64,
            "Float64": pl.Float64,
            "String": pl.String,
            "UnixTimestamp": pl.Datetime("us", "UTC"),
            "Float64Array": pl.List(pl.Float64),
        }
        given = pl.from_pandas(rows[list(types)]).cast({name: kinds[kind] for name, kind in types.items()})
        computed = [pl.Expr.deserialize(BytesIO(b64decode(text))).alias(name) for name, text in features.items()]
        return given.select(computed).to_pandas()

    on_demand.__module__ = "__main__"  # by its content, since a client may not have this module
    return on_demand


def _service(model: ModelPipeline, tables: Mapping[str, Any]) -> feast.FeatureService:
    import feast

    return feast.FeatureService(
        name=feast_name(model),
        features=[_chosen(tables[item.view.id], item) for item in model.chosen],
        description=model.description or f"Inputs of {model.title}",
        tags=_tags(team=model.team, label=model.label, task=model.task),
        owner=", ".join(model.owners),
    )


def _chosen(table: Any, selection: FeatureSelection) -> Any:
    """Feast takes a stored view by features, and an on-demand view as a whole."""
    return table[list(selection.features)] if isinstance(selection.view, FeatureView) else table


def _tags(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "")}
