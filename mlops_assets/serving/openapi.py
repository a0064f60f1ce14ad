"""The OpenAPI page of the models that are served now: their real fields, and examples that answer.

Made from what the bundle carries (plan, schema, post-processing, golden rows), so it can say nothing that the model
does not do. A bound that is enforced is `minimum` and `maximum`; what training usually saw is only described, and
categories are examples: others are allowed, and read as missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from mlops_assets.fields import Field, TypeName
from mlops_assets.input_schema import Column
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import Reason, RequestField, Stand
from mlops_assets.serving.releases import Releases
from mlops_assets.serving.releases.traffic import Traffic
from mlops_assets.serving.wire.formats import ARROW, JSON, MSGPACK
from mlops_assets.serving.wire.raw import MAX_ROWS
from mlops_assets.serving.wire.tensors import DATATYPES
from mlops_assets.serving.wire.v2 import EXTENSION, SERVER

JSON_TYPE: dict[TypeName, dict[str, Any]] = {
    "Bool": {"type": "boolean"},
    "Int64": {"type": "integer", "format": "int64"},
    "Float64": {"type": "number", "format": "double"},
    "String": {"type": "string"},
    "UnixTimestamp": {"type": "string", "format": "date-time"},
    "Float64Array": {"type": "array", "items": {"type": "number"}},
}
EXAMPLE_VALUE: dict[TypeName, Any] = {
    "Bool": False,
    "Int64": 1,
    "Float64": 1.0,
    "String": "example",
    "UnixTimestamp": "2013-04-01T12:00:00+00:00",
    "Float64Array": [],
}
MANY_CATEGORIES = 20
Schema = dict[str, Any]


def openapi(releases: Releases) -> dict[str, Any]:
    """An OpenAPI 3.1 document of every route, with the predict routes of each model that is awake."""
    paths = dict(SERVER_PATHS)
    for model in releases.models():
        served = releases.peek(model)
        paths[f"/{model}/release"] = {"get": _get(model, "The release that answers, and any that was refused")}
        if served and served.traffic:
            paths |= _of_model(model, served.traffic)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Models", "version": "1", "description": "What these models are asked, and answer."},
        "paths": paths,
        "components": {"schemas": COMPONENTS},
    }


def _of_model(model: str, traffic: Traffic) -> dict[str, Any]:
    release, name = traffic.champion, model.replace("/", ".")
    versions = [variant.version for variant, _ in traffic.shares]
    of_version = {**_parameter("version", "path", "A version that is served"), "required": True}
    of_version["schema"] = {"type": "string", "enum": versions}
    paths: dict[str, Any] = {f"/{model}/predict": {"post": _predict(release)}}
    for path, parameters in ((f"/v2/models/{name}", []), (f"/v2/models/{name}/versions/{{version}}", [of_version])):
        paths[path] = {"parameters": parameters, "get": _get(model, "Its tensors (Open Inference Protocol)")}
        paths[f"{path}/ready"] = {"parameters": parameters, "get": _get(model, "Is it ready?", not_ready=True)}
        tried = {} if parameters else _named({"by features": _tensors(release)})
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer(release, tried)}
    return paths


def _predict(release: Release) -> dict[str, Any]:
    request, answer = _request(release), _answer(release)
    table = {"type": "string", "contentMediaType": ARROW, "description": "A table of the same fields as columns."}
    return {
        "tags": [release.model],
        "summary": f"Predict {release.manifest.get('label', '')} by {release.manifest['framework']}",
        "operationId": f"predict {release.model}",
        "parameters": [
            _parameter("x-deadline-ms", "header", "Milliseconds after which no answer is wanted any more", "number"),
            _parameter("x-request-id", "header", "Repeated in the answer's headers and in the log"),
        ],
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": request, "examples": _named(examples(release))},
                MSGPACK: {"schema": request},
                ARROW: {"schema": table},
            },
        },
        "responses": {
            "200": {
                "description": "One answer a row, in the order of the rows",
                "content": {JSON: {"schema": answer}, MSGPACK: {"schema": answer}, ARROW: {"schema": table}},
            },
            **_refusals("#/components/schemas/Refusal"),
        },
    }


def example(release: Release) -> dict[str, Any]:
    """A request that any process with this release answers, whatever its online store holds."""
    return {"rows": [{"features": dict(zip(release.plan.inputs, release.golden.rows[0], strict=True))}]}


def examples(release: Release) -> dict[str, dict[str, Any]]:
    """Requests by title. Keys are made up, so that what is looked up by them falls back."""
    plan = release.plan
    known = dict(zip(plan.inputs, release.golden.rows[0], strict=True))
    keys = {entity.join_key: known.get(entity.join_key, EXAMPLE_VALUE[entity.dtype]) for entity in plan.entities}
    request = {field.name: _value(field, known.get(field.name)) for field in plan.request}
    return {"by features": example(release), "by keys": {"rows": [{**keys, **request}]}}


def _value(field: RequestField, known: Any) -> Any:
    """What the golden row has, where it may be sent; else a value within the bounds."""
    value = EXAMPLE_VALUE[field.dtype] if known is None else known
    if known is None and field.size is not None:
        return [0.0 if field.minimum is None else field.minimum] * field.size
    if field.dtype in ("Int64", "Float64"):
        value = max(value, value if field.minimum is None else field.minimum)
        value = min(value, value if field.maximum is None else field.maximum)
    return value


def _named(requests: Mapping[str, Any]) -> dict[str, Any]:
    return {title.replace(" ", "-"): {"summary": title, "value": request} for title, request in requests.items()}


def _request(release: Release) -> Schema:
    rows = {"type": "array", "minItems": 1, "maxItems": MAX_ROWS, "description": "All of them of one kind"}
    rows["items"] = {"anyOf": [_keyed(release), _featured(release)]}
    at = {**JSON_TYPE["UnixTimestamp"], "description": "The time asked about, with its zone; now when left out"}
    return _object({"rows": rows, "at": at}, ["rows"])


def _keyed(release: Release) -> Schema:
    plan = release.plan
    categories = {column.name: _categories(column) for column in release.schema.columns}
    keys = {entity.join_key: JSON_TYPE[entity.dtype] | _told(entity.description) for entity in plan.entities}
    request = {
        field.name: _nullable(field.dtype) | _told(field.description, field.unit) | _limits(field)
        | categories.get(field.name, {})
        for field in plan.request
    }  # fmt: skip
    schema = _object({plan.key: LABEL_KEY, **keys, **request}, [*keys, *request])
    return {**schema, "title": "By keys: the features are looked up"}


def _featured(release: Release) -> Schema:
    plan = release.plan
    columns = {column.name: _input(column) for column in release.schema.columns}
    keys = {entity.join_key: JSON_TYPE[entity.dtype] | _told(entity.description) for entity in plan.entities}
    features = _object(columns, list(columns))
    schema = _object({plan.key: LABEL_KEY, **keys, "features": features}, ["features"])
    return {**schema, "title": "By features: every input is given"}


def _input(column: Column) -> Schema:
    told = _told(column.description, column.unit, column.minimum, column.maximum)
    return _nullable(column.dtype) | _length(column.size) | told | _categories(column)


def _length(size: int | None) -> Schema:
    return {} if size is None else {"minItems": size, "maxItems": size}


def _categories(column: Column) -> Schema:
    return {"examples": list(column.categories[:MANY_CATEGORIES])} if column.categories else {}


def _limits(field: RequestField) -> Schema:
    """What is enforced of a value, of an array its length and each of its numbers."""
    if field.dtype != "Float64Array":
        return _bounds(field)
    return {**_length(field.size), "items": {**JSON_TYPE["Float64Array"]["items"], **_bounds(field)}}


def _bounds(field: RequestField | Field) -> Schema:
    bounds = {"minimum": field.minimum, "maximum": field.maximum}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _told(meaning: str, unit: str | None = None, minimum: float | None = None, maximum: float | None = None) -> Schema:
    usual = "" if minimum is None and maximum is None else _usually(minimum, maximum)
    return {"description": "".join([meaning, f" [{unit}]" if unit else "", usual])}


def _usually(minimum: float | None, maximum: float | None) -> str:
    if minimum is None:
        return f", usually at most {maximum}"
    return f", usually at least {minimum}" if maximum is None else f", usually between {minimum} and {maximum}"


def _answer(release: Release) -> Schema:
    made = release.outputs.items()
    outputs = {name: _nullable(field.dtype) | _told(field.meaning) | _bounds(field) for name, field in made}
    label = release.manifest.get("label", "")
    meanings = {"classification": f"Probability of {label}", "multiclass": f"The class: {label}"}
    meaning = meanings.get(release.manifest.get("task", ""), str(label))
    row = {
        "request_id": {"type": "string", "description": "The label key's value, or one made up; the log has it"},
        "prediction": {"type": "number", "description": meaning},
        **outputs,
        "release": {"type": "string", "description": "The Bento that answered"},
        "version": {"type": "string", "description": "The registered version of its model"},
        "variant": {"enum": ["champion", "challenger"]},
        "fallbacks": {"type": "array", "items": {"$ref": "#/components/schemas/Fallback"}},
    }
    rows = {"type": "array", "items": _object(row, list(row))}
    return _object({"model": {"const": release.model}, "predictions": rows}, ["model", "predictions"])


def _infer(release: Release, tried: dict[str, Any]) -> dict[str, Any]:
    return {
        "tags": [release.model],
        "summary": "Predict (Open Inference Protocol)",
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": "#/components/schemas/InferRequest"}, "examples": tried},
                EXTENSION: {"schema": {"type": "string", "description": "Tensors as bytes behind the JSON"}},
            },
        },
        "responses": {
            "200": {
                "description": "One tensor an output, one value a row",
                "content": {JSON: {"schema": {"$ref": "#/components/schemas/InferResponse"}}},
            },
            **_refusals("#/components/schemas/InferError"),
        },
    }


def _tensors(release: Release) -> dict[str, Any]:
    """The example as tensors; JSON's null stands for what is missing."""
    row = release.golden.rows[0]
    inputs = [
        {"name": column.name, "datatype": DATATYPES[column.dtype], "shape": [1, column.size or 1]}
        | {"data": (value if value is not None else [None] * column.size) if column.size else [value]}
        for column, value in zip(release.schema.columns, row, strict=True)
    ]
    return {"inputs": inputs}


def _nullable(dtype: TypeName) -> Schema:
    return {**JSON_TYPE[dtype], "type": [JSON_TYPE[dtype]["type"], "null"]}


def _object(properties: dict[str, Any], required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _parameter(name: str, place: Literal["path", "header"], meaning: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": place, "description": meaning, "schema": {"type": kind}}


def _get(tag: str, summary: str, *, not_ready: bool = False) -> dict[str, Any]:
    answers = {"200": {"description": "OK", "content": {JSON: {"schema": {"type": "object"}}}}}
    if not_ready:
        answers["503"] = {"description": "Not ready", "content": {JSON: {"schema": {"type": "object"}}}}
    return {"tags": [tag], "summary": summary, "responses": answers}


REFUSED = {
    "404": "No such model or version is served",
    "413": "The body is too large",
    "415": "The content type is not known",
    "422": "A row, a field or a value is not what the model asks for; nothing was answered",
    "429": "Too many requests wait; ask again when Retry-After has passed",
    "500": "The model failed",
    "503": "There is nothing to answer with, or the online store is away",
    "504": "The deadline passed before there was an answer",
}


def _refusals(schema: str) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": schema}}}
    after = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return {
        status: {"description": meaning, "content": content} | ({"headers": after} if status in ("429", "503") else {})
        for status, meaning in REFUSED.items()
    }


LABEL_KEY = {"type": ["string", "integer"], "description": "The row's own id; one is made up when it is left out"}
NULLABLE_TEXT = {"type": ["string", "null"]}
TENSOR = {"name": {"type": "string"}, "shape": {"type": "array", "items": {"type": "integer"}}, "datatype": {}}
INFER_TENSOR = {**TENSOR, "data": {"type": "array"}, "parameters": {"type": "object"}}
COMPONENTS: dict[str, Schema] = {
    "Refusal": _object(
        {
            "errors": {
                "type": "array",
                "items": _object(
                    {
                        "problem": {"type": "string"},
                        "fix": {"type": "string"},
                        "field": NULLABLE_TEXT,
                        "row": {"type": ["integer", "null"], "description": "Counts from 0"},
                    },
                    ["problem", "fix", "field", "row"],
                ),
            }
        },
        ["errors"],
    ),
    "Fallback": {
        **_object(
            {
                "view": {"type": "string"},
                "keys": {"type": "object"},
                "reason": {"enum": list(get_args(Reason))},
                "used": {"enum": list(get_args(Stand))},
            },
            ["view", "keys", "reason", "used"],
        ),
        "description": "A feature view without a usable row for these keys, and what stood in for it",
    },
    "InferRequest": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": {"type": "object", "properties": INFER_TENSOR}},
            "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "parameters": {"type": "object", "properties": {"at": JSON_TYPE["UnixTimestamp"]}},
        },
        "required": ["inputs"],
    },
    "InferResponse": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "outputs": {"type": "array", "items": {"type": "object", "properties": INFER_TENSOR}},
            "parameters": {"type": "object"},
        },
        "required": ["model_name", "outputs"],
    },
    "InferError": _object({"error": {"type": "string"}}, ["error"]),
}
METRICS = {"200": {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}}
SERVER_PATHS: dict[str, Any] = {
    "/healthz": {"get": _get("server", "Is the process alive?")},
    "/readyz": {"get": _get("server", "Can every model answer?", not_ready=True)},
    "/metrics": {"get": {"tags": ["server"], "summary": "Metrics, as Prometheus reads them", "responses": METRICS}},
    "/v2": {"get": _get("server", f"The server, and its extensions: {', '.join(SERVER['extensions'])}")},
    "/v2/health/live": {"get": _get("server", "Is the process alive?")},
    "/v2/health/ready": {"get": _get("server", "Can every model answer?", not_ready=True)},
}
