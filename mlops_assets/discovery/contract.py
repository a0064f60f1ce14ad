"""The feature contract: what champions and released models read, and which declarations no longer give it.

A `Reader` is one version of a model that is its champion or has traffic; a `Read` is one view as that version reads
it, told by the plan in its Bento. `mlops features contract` writes the readers down, `mlops features check` holds them
against the declarations. The rule that must never break: nothing that a model in use reads is removed, or means
another thing, before that model was retrained. What is added harms nobody.

A contract depends on what is in use alone: no clock, no path, so that it changes in a diff only when the readers do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.catalog import Catalog
from mlops_assets.declarations import FeatureView, OnDemandView
from mlops_assets.promotion import BENTO, Promotion
from resources.champions import ALIAS

if TYPE_CHECKING:
    from resources.mlflow import Version

AnyView = FeatureView | OnDemandView
CHAMPION, ENDPOINT = "champion", "endpoint"


class UnreadableContractError(ValueError):
    """A file was given that is no feature contract."""

    @classmethod
    def of(cls, path: Path, problem: object) -> Self:
        return cls(f"{path} is no feature contract ({problem}). Write it again: mlops features contract > {path}")


class UnreadablePlanError(ValueError):
    """The bundle of a model in use does not tell what it reads."""

    @classmethod
    def of(cls, bundle: Path, problem: object) -> Self:
        return cls(f"Bundle {bundle} does not tell which features it reads ({problem}). Train the model again.")


@dataclass(frozen=True)
class Read:
    """One view as a model reads it: types by feature (None where unknown), types by join key, in order.

    A view that is computed on demand has no keys (None) and no ttl. What stands in for a view's missing rows is a
    view of its own, and read like one.
    """

    view: str
    features: Mapping[str, str | None]
    keys: Mapping[str, str] | None
    ttl_seconds: float | None

    @classmethod
    def of(cls, view: AnyView) -> Self:
        """All that is declared of a view."""
        features = {name: _typed(column.dtype, column.size) for name, column in view.schema.items()}
        if isinstance(view, OnDemandView):
            return cls(view.id, features, None, None)
        keys = {entity.join_key: entity.dtype.dtype for entity in view.entities}
        return cls(view.id, features, keys, view.ttl.total_seconds() if view.ttl else None)


@dataclass(frozen=True)
class Reader:
    """A version in use; `roles` says as what: champion, endpoint (it has traffic), or both."""

    model: str
    version: str
    roles: tuple[str, ...]
    reads: tuple[Read, ...]

    def __str__(self) -> str:
        where = [f"endpoint /{self.model}/predict" if role == ENDPOINT else role for role in self.roles]
        return f"{self.model} version {self.version} ({', '.join(where)})"


@dataclass(frozen=True)
class Breach:
    """Features that a model in use reads, and what became of them."""

    view: str
    features: tuple[str, ...]
    change: str
    reader: Reader

    def __str__(self) -> str:
        return f"{self.view}:{','.join(self.features)} {self.change}; {self.reader} reads it"


def views(catalog: Catalog) -> dict[str, AnyView]:
    """Stored views and those on demand, by id."""
    found: list[AnyView] = [*catalog.views, *catalog.on_demand.values()]
    return {view.id: view for view in found}


def reads_of(bundle: Path) -> tuple[Read, ...]:
    """What a bundle's plan reads of each view. Raises UnreadablePlanError."""
    try:
        plan = json.loads((bundle / "plan.json").read_bytes())
        columns = json.loads((bundle / "schema.json").read_bytes())["columns"]
        types = {column["name"]: _typed(column["dtype"], column.get("size")) for column in columns}
        return tuple(_reads(plan, types))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UnreadablePlanError.of(bundle, f"{type(problem).__name__}: {problem}") from problem


def _reads(plan: Mapping[str, Any], types: Mapping[str, str]) -> Iterator[Read]:
    """Stored views, then those on demand; older plans have none of these. What only they read has its type there."""
    computed = plan.get("transforms", [])
    known = {**{name: dtype for item in computed for name, dtype in item["inputs"].items()}, **types}
    keys = {entity["join_key"]: entity["dtype"] for entity in plan["entities"]}
    for view in plan["views"]:
        features = {name: known.get(name) for name in view["features"]}
        yield Read(view["view"], features, {key: keys[key] for key in view["join_keys"]}, view["ttl_seconds"])
        if table := view.get("cold_start_table"):
            yield Read(_view_of(table, view["view"]), features, {}, None)
    for item in computed:
        yield Read(item["view"], {name: known.get(name) for name in item["features"]}, None, None)


def _view_of(table: str, beside: str) -> str:
    """The id of the view that fills an online table, by that of another view of its team."""
    team = beside.partition("/")[0]
    return f"{team}/{table.removeprefix(f'{team}__')}"


def _typed(dtype: str, size: int | None) -> str:
    """An array's type is its length too."""
    return dtype if size is None else f"{dtype}[{size}]"


def readers(catalog: Catalog, promotion: Promotion) -> list[Reader]:
    """The champion of every model, and every version with traffic, also of models that are declared no more."""
    models = sorted({*catalog.models, *promotion.releases.models()})
    return [reader for model in models for reader in _readers(model, promotion)]


def _readers(model: str, promotion: Promotion) -> list[Reader]:
    bundles, roles = dict[str, Path](), dict[str, list[str]]()
    if champion := promotion.mlflow.alias(registered_name(model), ALIAS):
        bundles[champion] = bundle_of(promotion, promotion.mlflow.version(registered_name(model), champion))
        roles[champion] = [CHAMPION]
    record = promotion.releases.read(model)
    for variant in record.variants if record else ():
        if variant.weight:
            bundles.setdefault(variant.version, promotion.bentos.path(variant.release))
            roles.setdefault(variant.version, []).append(ENDPOINT)
    return [Reader(model, name, tuple(roles[name]), reads_of(bundles[name])) for name in sorted(bundles, key=int)]


def registered_name(model: str) -> str:
    """The registry's name of a model by its id, whether it is declared or not."""
    return model.replace("/", ".")


def bundle_of(promotion: Promotion, version: Version) -> Path:
    """The bundle in the version's Bento; the registry's own where none was built, or it was deleted."""
    tag = version.tags.get(BENTO)
    if tag in promotion.bentos.list():
        return promotion.bentos.path(str(tag))
    return promotion.mlflow.download(version.name, version.version)


def breaches(found: Iterable[Reader], catalog: Catalog) -> list[Breach]:
    """What the readers read and the declarations no longer give as it was."""
    declared = {name: Read.of(view) for name, view in views(catalog).items()}
    return [
        Breach(read.view, features, change, reader)
        for reader in found
        for read in reader.reads
        for features, change in _changes(read, declared.get(read.view))
    ]


def _changes(read: Read, now: Read | None) -> Iterator[tuple[tuple[str, ...], str]]:
    """The features of a view that changed, and how; what concerns the whole view names all that are read."""
    every = tuple(read.features)
    if now is None:
        yield every, "is removed with its view"
        return
    if (was := _keyed(read)) != (become := _keyed(now)):
        yield every, f"is found by {become}, was by {was}"
    if read.ttl_seconds != now.ttl_seconds:
        yield every, f"holds for {_lasting(now.ttl_seconds)}, was {_lasting(read.ttl_seconds)}"
    for name, dtype in read.features.items():
        if name not in now.features:
            yield (name,), "is removed"
        elif dtype is not None and dtype != now.features[name]:
            yield (name,), f"is {now.features[name]}, was {dtype}"


def _keyed(read: Read) -> str:
    if read.keys is None:
        return "the request"
    return ", ".join(f"{name} ({dtype})" for name, dtype in read.keys.items()) or "no key"


def _lasting(seconds: float | None) -> str:
    return "ever" if seconds is None else str(timedelta(seconds=seconds))


def to_json(found: Iterable[Reader]) -> dict[str, Any]:
    """The contract as plain values. Keys are a list, since their order matters and that of an object does not."""
    document: dict[str, Any] = {"readers": [asdict(reader) for reader in found]}
    for reader in document["readers"]:
        for read in reader["reads"]:
            read["keys"] = None if read["keys"] is None else [list(pair) for pair in read["keys"].items()]
    return document


def from_json(path: Path) -> list[Reader]:
    """The readers of a contract's file. Raises UnreadableContractError."""
    try:
        return [_reader(item) for item in json.loads(path.read_bytes())["readers"]]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UnreadableContractError.of(path, f"{type(problem).__name__}: {problem}") from problem


def _reader(item: Mapping[str, Any]) -> Reader:
    reads = tuple(
        Read(
            view=read["view"],
            features=dict(read["features"]),
            keys=None if read["keys"] is None else dict(read["keys"]),
            ttl_seconds=read["ttl_seconds"],
        )
        for read in item["reads"]
    )
    return Reader(item["model"], item["version"], tuple(item["roles"]), reads)
