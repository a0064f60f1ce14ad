"""Everything that was declared, found in the team folders and judged together.

`gather()` imports `feature_assets/<team>/*.py` and `model_assets/<team>/*.py`, and reads the
`defs.yaml` components there. What one declaration cannot know alone is judged here: an input that no
table provides, two declarations of one name. Nothing heavy is imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, Self

import dagster as dg

from mlops_assets.declarations import (
    DeclarationError,
    FeatureSelection,
    FeatureView,
    Labels,
    ModelPipeline,
    OnDemandView,
    Source,
)

Table = Source | FeatureView | Labels
Declaration = Table | OnDemandView | ModelPipeline
PACKAGES = ("feature_assets", "model_assets")


class UnknownDeclarationError(LookupError):
    """A name was asked for that no declaration has."""

    @classmethod
    def of(cls, kind: str, asked: str, known: Iterable[str]) -> Self:
        names = sorted(known)
        close = difflib.get_close_matches(asked, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return cls(f"There is no {kind} {asked!r} (known: {', '.join(names) or 'none'}).{hint}")


def asset_key(table: Table) -> dg.AssetKey:
    """Where the table is published; `offline` are the rows of a feature view that training reads.

    The view's name comes last: Dagster's graph shows the last part of a key alone.
    """
    place = ["offline"] if isinstance(table, FeatureView) else []
    return dg.AssetKey([table.team, *place, table.name])


@dataclass(frozen=True)
class Catalog:
    """The declarations by id (`<team>/<name>`)."""

    tables: dict[str, Table] = field(default_factory=dict)
    models: dict[str, ModelPipeline] = field(default_factory=dict)
    on_demand: dict[str, OnDemandView] = field(default_factory=dict)
    components: tuple[dg.Definitions, ...] = ()

    @classmethod
    def of(cls, declarations: Iterable[Declaration], components: Iterable[dg.Definitions] = ()) -> Self:
        catalog = cls(components=tuple(components))
        for declaration in declarations:
            catalog._add(declaration)
        for view in catalog.views:
            if view.stand_in:
                catalog._add(view.stand_in)
        for table in catalog.tables.values():
            list(catalog.inputs(table))
        for computed in catalog.on_demand.values():
            read = [item.view if isinstance(item, FeatureSelection) else item for item in computed.reads]
            catalog._check_tables_of(computed, read)
        for model in catalog.models.values():
            catalog._check_tables_of(model, [model.labels, *(selection.view for selection in model.chosen)])
        return catalog

    def _add(self, declaration: Declaration) -> None:
        shelf: dict[str, Any] = self.tables
        if isinstance(declaration, ModelPipeline | OnDemandView):
            shelf = self.models if isinstance(declaration, ModelPipeline) else self.on_demand
        taken = self._declared(declaration.id)
        if taken is declaration:
            return
        if taken is not None:
            raise DeclarationError.of(
                declaration.title,
                "name",
                declaration.name,
                f"one declaration per name; {taken.title} has it",
                "Rename one.",
            )
        shelf[declaration.id] = declaration

    def _declared(self, name: str) -> Declaration | None:
        return self.models.get(name) or self.tables.get(name) or self.on_demand.get(name)

    def _check_tables_of(self, reader: ModelPipeline | OnDemandView, read: Iterable[Table | OnDemandView]) -> None:
        for table in read:
            if self._declared(table.id) is not table:
                raise DeclarationError.of(
                    reader.title,
                    "labels" if isinstance(table, Labels) else "features",
                    table.id,
                    ", ".join(sorted([*self.tables, *self.on_demand])),
                    "Declare it at the top level of a file below feature_assets/ or model_assets/.",
                )

    def inputs(self, table: Table) -> Iterator[tuple[str, Table]]:
        """The tables that `table` reads, by the parameter that names them (same team)."""
        if isinstance(table, Source):
            return
        for name in table.inputs:
            known = [other.name for other in self.tables.values() if other.team == table.team and other is not table]
            if name not in known:
                raise DeclarationError.of(
                    table.title,
                    "parameter",
                    name,
                    ", ".join(sorted(known)) or "none",
                    "Name the table that the function reads.",
                )
            yield name, self.tables[f"{table.team}/{name}"]

    def model(self, name: str) -> ModelPipeline:
        if name not in self.models:
            raise UnknownDeclarationError.of("model", name, self.models)
        return self.models[name]

    @property
    def views(self) -> list[FeatureView]:
        return [table for table in self.tables.values() if isinstance(table, FeatureView)]

    def view(self, name: str) -> FeatureView:
        views = {view.id: view for view in self.views}
        if name not in views:
            raise UnknownDeclarationError.of("feature view", name, views)
        return views[name]

    def labels(self, name: str) -> Labels:
        known = {table.id: table for table in self.tables.values() if isinstance(table, Labels)}
        if name not in known:
            raise UnknownDeclarationError.of("label table", name, known)
        return known[name]

    def features(self, reference: str) -> FeatureSelection:
        """`team/view` for all features, `team/view:a,b` for some, as Feast writes them."""
        name, _, names = reference.partition(":")
        view = self.on_demand.get(name) or self.view(name)
        return view[[item.strip() for item in names.split(",")]] if names else view.selection


def team_modules(package: ModuleType) -> Iterator[ModuleType]:
    """The modules of the team folders; files beside the folders (a Feast repo file) are not declarations."""
    for team in iter_modules(package.__path__):
        if not team.ispkg:
            continue
        folder = import_module(f"{package.__name__}.{team.name}")
        yield folder
        for file in iter_modules(folder.__path__):
            if not file.ispkg:
                yield import_module(f"{folder.__name__}.{file.name}")


def _declared_in(module: ModuleType) -> Iterator[Declaration]:
    kinds = (Source, FeatureView, Labels, OnDemandView, ModelPipeline)
    return (value for value in vars(module).values() if isinstance(value, kinds))


def component_files(package: ModuleType) -> list[Path]:
    return sorted(path for root in package.__path__ for path in Path(root).rglob("defs.yaml"))


@cache
def gather_python(packages: tuple[str, ...] = PACKAGES) -> Catalog:
    """What the Python files of the team folders declare."""
    modules = [module for name in packages for module in team_modules(import_module(name))]
    return Catalog.of(item for module in modules for item in _declared_in(module))


@cache
def gather(packages: tuple[str, ...] = PACKAGES) -> Catalog:
    """Everything declared, in Python and in YAML; an error names the declaration and the fix."""
    python = gather_python(packages)
    files = [(package, path) for package in map(import_module, packages) for path in component_files(package)]
    if not files:
        return python
    from mlops_assets.component import load_components

    models, others = load_components(files, python)
    declared = [*python.tables.values(), *python.on_demand.values(), *python.models.values()]
    return Catalog.of([*declared, *models], others)
