"""The OpenAPI page of the models that are served now: their real fields, and an example that answers."""

from __future__ import annotations

from typing import Any

from mlops_assets.fields import TypeName
from mlops_assets.input_schema import Column
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import RequestField
from mlops_assets.serving.releases import Releases
from mlops_assets.serving.request import MAX_ROWS

JSON_TYPE: dict[TypeName, str] = {
    "Bool": "boolean",
    "Int64": "integer",
    "Float64": "number",
    "String": "string",
    "UnixTimestamp": "string",
    "Float64Array": "array",
}


def openapi(releases: Releases) -> dict[str, Any]:
    """An OpenAPI 3.1 document with one predict and one release path per served model."""
    paths: dict[str, Any] = {}
    for model in releases.models():
        served = releases.served(model)
        paths[f"/{model}/release"] = {"get": _operation(model, "The release that answers, and any that was refused")}
        if served and served.traffic:
            paths[f"/{model}/predict"] = {"post": _predict(served.traffic.champion)}
    return {"openapi": "3.1.0", "info": {"title": "Models", "version": "1"}, "paths": paths}


def _operation(model: str, summary: str) -> dict[str, Any]:
    return {"tags": [model], "summary": summary, "responses": {"200": {"description": "OK"}}}


def _predict(release: Release) -> dict[str, Any]:
    rows = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_ROWS,
        "items": {"anyOf": [_keyed(release), _featured(release)]},
    }
    body = _object({"rows": rows, "at": {"type": "string", "format": "date-time"}}, ["rows"])
    return {
        **_operation(release.model, f"Predict {release.manifest.get('label', '')} by {release.manifest['framework']}"),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": example(release)}},
        },
    }


def example(release: Release) -> dict[str, Any]:
    """A request that any process with this release answers, whatever its online store holds."""
    return {"rows": [{"features": dict(zip(release.plan.inputs, release.golden.rows[0], strict=True))}]}


def _keyed(release: Release) -> dict[str, Any]:
    plan = release.plan
    keys = {entity.join_key: _typed(entity.dtype, entity.description) for entity in plan.entities}
    request = {field.name: _request(field) for field in plan.request}
    schema = _object({plan.key: {"type": "string"}, **keys, **request}, [*keys, *request])
    return {**schema, "title": "By keys: the features are looked up"}


def _featured(release: Release) -> dict[str, Any]:
    columns = {column.name: _input(column) for column in release.schema.columns}
    features = _object(columns, list(columns))
    return {
        **_object({release.plan.key: {"type": "string"}, "features": features}, ["features"]),
        "title": "By features",
    }


def _input(column: Column) -> dict[str, Any]:
    shape: dict[str, Any] = {"type": [JSON_TYPE[column.dtype], "null"]}
    if column.size is not None:
        shape |= {"items": {"type": "number"}, "minItems": column.size, "maxItems": column.size}
    return {**_typed(column.dtype, column.description), **shape}


def _request(field: RequestField) -> dict[str, Any]:
    bounds = {"minimum": field.minimum, "maximum": field.maximum}
    meaning = f"{field.description} [{field.unit}]" if field.unit else field.description
    return {**_typed(field.dtype, meaning), **{name: bound for name, bound in bounds.items() if bound is not None}}


def _typed(dtype: TypeName, description: str) -> dict[str, Any]:
    return {"type": JSON_TYPE[dtype], "description": description}


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
