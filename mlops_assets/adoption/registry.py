"""What a Feast registry says, read without Feast: sources, views and services of one project.

A registry is one protobuf message. Its schema lies beside Feast's generated modules; it is taken from their text,
because running them would run `feast/__init__`, ten seconds. Functions that the registry carries are pickled code:
they stay the bytes that they are. Read by `repository`; `assets` and the checks see these dataclasses alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

ViewKind = Literal["batch", "stream", "on_demand", "labels"]
DUMMY = "__dummy"  # Feast's own entity, and the prefix of its key, of views that have none
NAME = re.compile(r"^[A-Za-z0-9_.-]+$")
LOCATIONS = ("uri", "table", "query", "path", "topic", "stream_name")  # as the sources' options name their place
Message = Any  # of a class that is made when the schema is read


class UnfitNameError(ValueError):
    """A registered name cannot be part of an asset key."""

    @classmethod
    def of(cls, kind: str, name: str) -> Self:
        return cls(
            f"The registry has a {kind} {name!r}; an asset key takes letters, digits, '_', '-' and '.'. "
            "Rename it in the Feast repository and run feast apply there."
        )


class UnreadableRegistryError(ValueError):
    """The bytes are not a registry, or not one of this project."""

    @classmethod
    def of(cls, where: Path, problem: str) -> Self:
        return cls(
            f"{where} is no Feast registry to read: {problem}. Run feast apply in the repository to write it anew; "
            "where this is a snapshot, mlops features adopt after it."
        )


@dataclass(frozen=True)
class Column:
    """A column and its type as Feast names it (`INT64`, `FLOAT_LIST`, ...)."""

    name: str
    type: str
    description: str = ""


@dataclass(frozen=True)
class Source:
    """Where rows come from. `mapping` renames its columns to those of a view; `batch` is what backs a stream."""

    name: str
    kind: str
    location: str = ""
    format: str = ""
    endpoint: str = ""
    timestamp: str = ""
    created: str = ""
    mapping: Mapping[str, str] = field(default_factory=dict)
    batch: str = ""
    columns: tuple[Column, ...] = ()
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str) -> str:
        """The source's own name of a view's column."""
        return next((own for own, seen in self.mapping.items() if seen == name), name)


@dataclass(frozen=True)
class Projection:
    """Some features of a view, as a service or an on-demand view reads them."""

    view: str
    features: tuple[Column, ...]


@dataclass(frozen=True)
class View:
    """A feature view of any kind. `inputs` are views that it is computed from, `ttl` None lives for ever.

    `transformed`: its columns are made from the source's, and not looked for there.
    """

    name: str
    kind: ViewKind
    entities: tuple[str, ...]
    keys: tuple[Column, ...]
    features: tuple[Column, ...]
    ttl: timedelta | None = None
    batch: str = ""
    sources: tuple[str, ...] = ()
    inputs: tuple[Projection, ...] = ()
    online: bool = False
    transformed: bool = False
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*self.keys, *self.features)


@dataclass(frozen=True)
class Service:
    """What one model reads, by projections of views."""

    name: str
    projections: tuple[Projection, ...]
    description: str = ""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """Everything that a registry holds of one project, by name."""

    sources: Mapping[str, Source]
    views: Mapping[str, View]
    services: Mapping[str, Service]

    def only(self, names: Iterable[str]) -> Registered:
        """Those views with all that they are made from, and the services that ask for no other."""
        kept = {name: self.views[name] for name in self._with_inputs(names)}
        services = {
            name: service
            for name, service in self.services.items()
            if all(projection.view in kept for projection in service.projections)
        }
        read = {source for view in kept.values() for source in view.sources}
        read |= {self.sources[name].batch for name in read}
        return Registered({name: source for name, source in self.sources.items() if name in read}, kept, services)

    def _with_inputs(self, names: Iterable[str]) -> Iterator[str]:
        for name in names:
            yield name
            yield from self._with_inputs(projection.view for projection in self.views[name].inputs)


def registered(content: bytes, project: str, where: Path) -> Registered:
    """The objects of `project` in a serialized registry. Raises UnreadableRegistryError, UnfitNameError."""
    registry = _parsed(content, where)
    _require_project(registry, project, where)
    views = dict(_named("feature view", _views(registry, project)))
    services = (_service(item.spec) for item in registry.feature_services if item.spec.project == project)
    return Registered(_sources(registry, project), views, dict(_named("feature service", services)))


def _parsed(content: bytes, where: Path) -> Message:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return _message_class().FromString(content)
    except DecodeError as error:
        raise UnreadableRegistryError.of(where, str(error)) from error


def _require_project(registry: Message, project: str, where: Path) -> None:
    known = {item.spec.name for item in registry.projects} | {item.project for item in registry.project_metadata}
    if project not in known:
        raise UnreadableRegistryError.of(
            where, f"it holds no project {project!r} (it has: {', '.join(sorted(known)) or 'none'})"
        )


@cache
def _message_class() -> type[Message]:
    """The class of the installed Feast's registry message, in a pool of descriptors of its own."""
    from google.protobuf import descriptor_pool, message_factory  # type: ignore[import-untyped]

    pool = descriptor_pool.DescriptorPool()
    _add(pool, "feast/core/Registry.proto", set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("feast.core.Registry"))


def _add(pool: Any, file: str, known: set[str]) -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto  # type: ignore[import-untyped]

    if file in known:
        return
    known.add(file)
    schema = _schema(file)
    for other in FileDescriptorProto.FromString(schema).dependency:
        _add(pool, other, known)
    pool.AddSerializedFile(schema)


def _schema(file: str) -> bytes:
    """A .proto file, serialized; Feast's are literals in modules that must not run."""
    module = file.removesuffix(".proto") + "_pb2"
    if file.startswith("google/"):
        return import_module(module.replace("/", ".")).DESCRIPTOR.serialized_pb
    text = Path(_feast(), "protos", f"{module}.py").read_text()
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    call = next(call for call in calls if getattr(call.func, "attr", "") == "AddSerializedFile")
    return bytes(ast.literal_eval(call.args[0]))


def _feast() -> Path:
    """Where the installed Feast is: found, not imported."""
    spec = find_spec("feast")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("Feast is not installed. Run: uv pip install 'feast>=0.67'", name="feast")
    return Path(spec.origin).parent


def _named(kind: str, items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for item in items:
        if not NAME.match(item.name):
            raise UnfitNameError.of(kind, item.name)
        yield item.name, item


def _said(message: Message) -> dict[str, Any]:
    """What every registered object may say of itself."""
    return {"description": message.description, "owner": message.owner, "tags": dict(message.tags)}


def _columns(fields: Iterable[Message]) -> tuple[Column, ...]:
    """Without the key that Feast makes up for views that have none."""
    return tuple(
        Column(item.name, _enum(item, "value_type"), item.description)
        for item in fields
        if not item.name.startswith(DUMMY)
    )


def _enum(message: Message, name: str) -> str:
    names = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number
    number = getattr(message, name)
    return names[number].name if number in names else str(number)


def _sources(registry: Message, project: str) -> dict[str, Source]:
    """Those registered by themselves, and those that a view alone mentions."""
    found = {item.name: _source(item) for item in _mentioned(registry, project)}
    found |= {item.name: _source(item) for item in registry.data_sources if item.project in (project, "")}
    return dict(_named("data source", found.values()))


def _mentioned(registry: Message, project: str) -> Iterator[Message]:
    for item in (*registry.feature_views, *registry.stream_feature_views):
        if item.spec.project == project:
            yield from _backing(item.spec.batch_source, item.spec.stream_source)
    for item in registry.on_demand_feature_views:
        if item.spec.project == project:
            yield from _backing(*(source.request_data_source for source in item.spec.sources.values()))
    for item in getattr(registry, "label_views", ()):
        if item.spec.project == project:
            yield from _backing(item.spec.source)


def _backing(*sources: Message) -> Iterator[Message]:
    for source in sources:
        if source.name:
            yield source
            yield from _backing(source.batch_source)


def _source(message: Message) -> Source:
    kind, options = _enum(message, "type"), _options(message)
    formats = getattr(options, "file_format", None) if kind == "BATCH_FILE" else None
    place = (getattr(options, name, "") for name in LOCATIONS) if options is not None else ()
    return Source(
        name=message.name,
        kind=kind.removeprefix("BATCH_").removeprefix("STREAM_").removesuffix("_SOURCE").lower(),
        location=next((found for found in place if found), ""),
        format="delta" if formats is not None and formats.HasField("delta_format") else "parquet" if formats else "",
        endpoint=getattr(options, "s3_endpoint_override", ""),
        timestamp=message.timestamp_field,
        created=message.created_timestamp_column,
        mapping=dict(message.field_mapping),
        batch=message.batch_source.name,
        columns=_columns(message.request_data_options.schema),
        **_said(message),
    )


def _options(message: Message) -> Message | None:
    """The part of a source that its kind fills."""
    which = message.WhichOneof("options")
    return getattr(message, which) if which else None


def _views(registry: Message, project: str) -> Iterator[View]:
    kinds = {
        "feature_views": _batch_view,
        "stream_feature_views": _stream_view,
        "on_demand_feature_views": _on_demand_view,
        "label_views": _label_view,
    }
    for shelf, view in kinds.items():
        # An older Feast knows fewer kinds.
        yield from (view(item.spec) for item in getattr(registry, shelf, ()) if item.spec.project == project)


def _common(spec: Message) -> dict[str, Any]:
    entities = tuple(name for name in spec.entities if name != DUMMY)
    keys = _columns(spec.entity_columns)
    known = {key.name for key in keys}  # Feast may infer a key as a feature, too
    features = tuple(column for column in _columns(spec.features) if column.name not in known)
    return {"name": spec.name, "entities": entities, "keys": keys, "features": features, **_said(spec)}


def _ttl(spec: Message) -> timedelta | None:
    return timedelta(seconds=spec.ttl.seconds, microseconds=spec.ttl.nanos // 1000) or None


def _batch_view(spec: Message) -> View:
    stream = (spec.stream_source.name,) if spec.stream_source.name else ()
    batch = (spec.batch_source.name,) if spec.batch_source.name else ()
    inputs = tuple(Projection(item.name, _columns(item.features)) for item in spec.source_views)
    return View(
        kind="batch",
        ttl=_ttl(spec),
        batch=spec.batch_source.name,
        sources=(*batch, *stream),
        inputs=inputs,
        online=spec.online and not spec.disabled,
        transformed=spec.HasField("feature_transformation"),
        **_common(spec),
    )


def _stream_view(spec: Message) -> View:
    return View(
        kind="stream",
        ttl=_ttl(spec),
        batch=spec.batch_source.name,
        sources=tuple(name for name in (spec.batch_source.name, spec.stream_source.name) if name),
        online=spec.online and not spec.disabled,
        **_common(spec),
    )


def _on_demand_view(spec: Message) -> View:
    """Of views and of what a request says; nothing is stored, unless it is written as the request would."""
    sources = spec.sources.values()
    projections = (item.feature_view_projection for item in sources if item.HasField("feature_view_projection"))
    whole = (item.feature_view.spec for item in sources if item.HasField("feature_view"))
    return View(
        kind="on_demand",
        sources=tuple(item.request_data_source.name for item in sources if item.HasField("request_data_source")),
        inputs=(
            *(_projection(item) for item in projections),
            *(Projection(item.name, _columns(item.features)) for item in whole),
        ),
        online=spec.write_to_online_store and not spec.disabled,
        transformed=True,
        **_common(spec),
    )


def _label_view(spec: Message) -> View:
    """Labels reach the online store when they are pushed: Feast does not materialize them.

    Nor does it look at the types of their keys in the source, but writes STRING for any that is not said.
    """
    common = _common(spec)
    common["keys"] = tuple(replace(key, type="UNKNOWN") for key in common["keys"])
    return View(
        kind="labels",
        ttl=_ttl(spec),
        batch=spec.source.batch_source.name or spec.source.name,
        sources=(spec.source.name,),
        **common,
    )


def _projection(message: Message) -> Projection:
    return Projection(message.feature_view_name, _columns(message.feature_columns))


def _service(spec: Message) -> Service:
    return Service(spec.name, tuple(_projection(item) for item in spec.features), **_said(spec))
