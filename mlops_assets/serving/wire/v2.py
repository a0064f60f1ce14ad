"""The Open Inference Protocol (V2), so that KServe, Triton's clients and others like them may ask.

    GET  /v2                 GET /v2/health/live, /v2/health/ready
    GET  /v2/models/{team}.{model}[/versions/{version}][/ready]
    POST /v2/models/{team}.{model}[/versions/{version}]/infer

Inputs are tensors by name: every input of the model, or the join keys and request features that its features are
looked up by, as its metadata says; or one matrix of all numbers, in their order, where the model reads no text. The
label key may be beside. `parameters.at` is the time asked about. What is answered: `prediction`, what post-processing
makes of it, and on request `request_id`, `release`, `version`, `variant`.

A version that is named answers itself, whatever its share of the traffic; one that is not served is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from mlops_assets.fields import TypeName
from mlops_assets.serving.releases.traffic import Traffic
from mlops_assets.serving.wire.formats import JSON, media_type, moment
from mlops_assets.serving.wire.problems import InvalidRequestError, Problem
from mlops_assets.serving.wire.raw import Raw, Table
from mlops_assets.serving.wire.replies import Part, reply_columns
from mlops_assets.serving.wire.tensors import DATATYPES, read_tensors, write_tensor

if TYPE_CHECKING:
    from mlops_assets.serving.bundle import Release

JSON_LENGTH = b"inference-header-content-length"
EXTENSION = "application/octet-stream"  # JSON with tensors as bytes behind it
SERVER: dict[str, Any] = {"name": "mlops-assets", "version": "2", "extensions": ["binary_tensor_data"]}
SAID: dict[str, TypeName] = {"request_id": "String", "release": "String", "version": "String", "variant": "String"}
MANY_PROBLEMS = 20
Headers = Mapping[bytes, bytes]
EXAMPLE = '{"inputs": [{"name": ..., "shape": [1], "datatype": "FP64", "data": [...]}]}'


class V2:
    """How one request of the protocol is read and answered. One object a request: its answer repeats its id."""

    def __init__(self, version: str | None = None) -> None:
        self._version = version
        self._id: str | None = None
        self._wanted: dict[str, bool] | None = None  # the outputs asked for, and whether as bytes
        self._binary = False
        self._types: dict[str, TypeName] = {}

    def traffic(self, traffic: Traffic) -> Traffic:
        """Who may answer: the version that is named alone."""
        return traffic if self._version is None else of_version(traffic, self._version)

    def read(self, body: bytes, headers: Headers, traffic: Traffic) -> Raw:
        """The request's tensors as a table. Raises InvalidRequestError."""
        asked, binary = _parts(body, headers)
        parameters = _object(asked.get("parameters"), "parameters")
        self._id = asked["id"] if isinstance(asked.get("id"), str) else None
        self._binary = parameters.get("binary_data_output") is True
        self._types = {name: kind for _, release in traffic.shares for name, kind in outputs_of(release).items()}
        self._wanted = self._outputs(asked.get("outputs"))
        return Table(read_tensors(asked.get("inputs"), binary), moment(parameters.get("at")))

    def _outputs(self, asked: Any) -> dict[str, bool] | None:
        if not asked:
            return None
        known = {**self._types, **SAID}
        wanted = {}
        for output in asked if isinstance(asked, list) else [asked]:
            name = output.get("name") if isinstance(output, dict) else None
            if name not in known:
                fix = f"Ask for one of: {', '.join(known)}."
                raise InvalidRequestError.of(f"unknown output {name!r}", fix, "outputs")
            parameters = _object(output.get("parameters"), "outputs")
            wanted[name] = parameters.get("binary_data", self._binary) is True
        return wanted

    def write(self, model: str, parts: Sequence[Part], headers: Headers) -> tuple[bytes, list[tuple[bytes, bytes]]]:  # noqa: ARG002
        """The answers as tensors of one value a row, in the order of the request's rows."""
        columns = reply_columns(parts)
        types = {**self._types, **SAID}
        wanted = self._wanted or {name: self._binary for name in self._types if name in columns}
        tensors = [write_tensor(name, types[name], columns[name], binary=wanted[name]) for name in wanted]
        said = {"model_name": model.replace("/", "."), **_who(parts), "outputs": [tensor for tensor, _ in tensors]}
        told = orjson.dumps(said if self._id is None else {**said, "id": self._id})
        if not any(data for _, data in tensors):
            return told, [(b"content-type", JSON.encode())]
        length = (JSON_LENGTH, b"%d" % len(told))
        return told + b"".join(data for _, data in tensors), [(b"content-type", EXTENSION.encode()), length]

    def refuse(self, error: InvalidRequestError) -> bytes:
        return orjson.dumps(error_of(error))


def of_version(traffic: Traffic, version: str) -> Traffic:
    """The share of one served version; 404 for one that is not."""
    for variant, release in traffic.shares:
        if variant.version == version:
            return Traffic(((variant, release),))
    known = ", ".join(variant.version for variant, _ in traffic.shares)
    raise InvalidRequestError.of(f"version {version!r} is not served", f"Ask for one of: {known}.", "version", 404)


def _parts(body: bytes, headers: Headers) -> tuple[dict[str, Any], bytes]:
    """The JSON of a request, and the tensors' bytes behind it."""
    if (encoding := headers.get(b"content-encoding", b"identity")) != b"identity":
        problem = f"the body is encoded as {encoding.decode('latin-1')}"
        raise InvalidRequestError.of(problem, "Send it plain: what would come out is not bounded.", None, 415)
    if (given := headers.get(JSON_LENGTH)) is not None:
        length = int(given) if given.isdigit() else -1
        if not 0 < length <= len(body):
            fix = "Send the length of the JSON part in bytes."
            raise InvalidRequestError.of(f"{given!r} is no length within the body", fix, JSON_LENGTH.decode(), 400)
    else:
        length = len(body)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        if media_type(content_type) != JSON:
            fix = f"Send {JSON}, or binary tensors behind JSON with {JSON_LENGTH.decode()}."
            raise InvalidRequestError.of(f"the content type {content_type!r} is not known", fix, None, 415)
    try:
        asked = orjson.loads(body[:length])
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError.of(f"the body is not JSON ({error})", f"Send {EXAMPLE}.", None, 400) from error
    return _object(asked, "the body"), body[length:]


def _object(given: Any, name: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InvalidRequestError.of(f"{name} is not an object", f"Send {EXAMPLE}.", status=400)
    return given


def _who(parts: Sequence[Part]) -> dict[str, Any]:
    """Who answered, where it was one release; and how many rows had no usable row in the store for some feature."""
    fallbacks = sum(bool(one.fallbacks) for _, answers in parts for one in answers.looked or ())
    if len(parts) > 1:
        return {"parameters": {"fallbacks": fallbacks}}
    variant = parts[0][1].variant
    said = {"release": variant.release, "variant": variant.role, "fallbacks": fallbacks}
    return {"model_version": variant.version, "parameters": said}


def error_of(error: InvalidRequestError) -> dict[str, str]:
    """The protocol's error: one text."""
    return {"error": "\n".join(map(_text, error.problems[:MANY_PROBLEMS]))}


def _text(problem: Problem) -> str:
    where = [f"row {problem.row}"] if problem.row is not None else []
    where += [problem.field] if problem.field else []
    return f"{', '.join(where)}: {problem.problem}. {problem.fix}" if where else f"{problem.problem}. {problem.fix}"


def outputs_of(release: Release) -> dict[str, TypeName]:
    """What a release answers with, by name."""
    return {"prediction": "Float64", **{name: field.dtype for name, field in release.outputs.items()}}


def metadata(release: Release, versions: Sequence[str]) -> dict[str, Any]:
    """A model's metadata. `parameters.by_keys` are the tensors to send instead, for features to be looked up."""
    plan = release.plan
    keys = [_tensor(entity.join_key, entity.dtype) for entity in plan.entities]
    request = [_tensor(field.name, field.dtype, field.size) for field in plan.request]
    return {
        "name": plan.model.replace("/", "."),
        "versions": list(versions),
        "platform": release.manifest["framework"],
        "inputs": [_tensor(column.name, column.dtype, column.size) for column in release.schema.columns],
        "outputs": [_tensor(name, dtype) for name, dtype in outputs_of(release).items()],
        "parameters": {"by_keys": [*keys, *request]},
    }


def _tensor(name: str, dtype: TypeName, size: int | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": DATATYPES[dtype], "shape": [-1] if size is None else [-1, size]}
