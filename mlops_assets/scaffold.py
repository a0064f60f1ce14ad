"""New declarations as files that materialize as they stand; what `mlops new` writes.

A file that exists is never overwritten. Defaults come from what the team has declared already, so that
the first materialization needs no edit; the comments say what to change next.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from string import Template
from typing import Self

import dagster as dg

from mlops_assets.catalog import PACKAGES, Catalog, gather, team_modules
from mlops_assets.declarations import NAME, Entity, FeatureView, Labels, Source
from resources.environment import PROJECT


class ScaffoldError(ValueError):
    """A declaration cannot be written from what there is."""

    @classmethod
    def of(cls, asked: str, problem: str, exists: Iterable[str], fix: str) -> Self:
        return cls(f"Cannot write {asked!r}: {problem} (there are: {', '.join(sorted(exists)) or 'none'}). {fix}")


MODEL = Template('''"""${title}: say here what is predicted, when it is asked, and who reads it."""

from __future__ import annotations

import dagster as dg

${imports}

${name} = ModelPipeline(
    name="${name}",
    team="${team}",
    labels=${labels},
    label="${label}",  # one of: ${targets}
    features=[
${features}
    ],
    trainer=${trainer}(),
    # Mondays, 00:00 UTC; the offset lets a cutoff be there from its first moment on.
    cutoffs=dg.WeeklyPartitionsDefinition(${span}, day_offset=1, end_offset=1),
    # Set the floor from a first candidate's metric: this one only refuses what is useless.
    gate=Gate(metric="${metric}", at_least=${floor}),
    # serve=Serve(...) bounds a canary; postprocess= names a function under @postprocess that says what an answer means.
)
''')

FEATURES = Template('''"""${title}: say here what one row is, who reads it, and what it may never know."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

${imports}

DAY = timedelta(days=1)


@feature_view(
    entities=[${entity}],
    ttl=2 * DAY,
    lookback=DAY,
    partitions=${source}.partitions,
    schema={"${name}_rows_1d": Float64("Rows of ${source} in the day before", unit="row", minimum=0)},
)
def ${name}(${source}: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of ${source} per ${key} in the day before each midnight."""
    # A row counts from the midnight after it, when its whole day is past.
    midnight = pl.col("${time}").dt.truncate("1d") + DAY
    rows = ${source}.drop_nulls("${key}").group_by("${key}", event_timestamp=midnight)
    return rows.agg(${name}_rows_1d=pl.len().cast(pl.Float64))
''')


def write_model(name: str, labels: str | None = None, label: str | None = None) -> Path:
    """Write a model over a label table and every view that fits it; returns the file's path."""
    catalog = gather()
    team, short = _new_name(catalog, name)
    table = catalog.labels(labels) if labels else _labels(catalog, name, team)
    target = label or next(iter(table.schema))
    if target not in table.schema:
        raise ScaffoldError.of(name, f"{table.title} has no target {target!r}", table.schema, "Name one of them.")
    views = _fitting(catalog, table)
    tables: list[Labels | FeatureView] = [table, *views]
    places = {item.id: _place(item) for item in tables}
    yes_or_no = table.schema[target].dtype == "Bool"
    trainer = "XGBoostClassifier" if yes_or_no else "XGBoostRegressor"
    words = [("mlops_assets", "Gate"), ("mlops_assets", "ModelPipeline"), ("mlops_assets.trainers", trainer)]
    return _written(
        PROJECT / "model_assets" / team / f"{short}.py",
        MODEL.substitute(
            title=_title(short),
            name=short,
            team=team,
            labels=places[table.id][1],
            label=target,
            targets=", ".join(table.schema),
            imports=_imports([*places.values(), *words]),
            features="\n".join(f"        {places[view.id][1]}," for view in views),
            trainer=trainer,
            metric="roc_auc" if yes_or_no else "r2",
            floor="0.5" if yes_or_no else "-1.0",
            span=_span(table),
        ),
    )


def write_features(name: str, source: str | None = None) -> Path:
    """Write a feature view that counts a source's rows per key and day; returns the file's path."""
    catalog = gather()
    team, short = _new_name(catalog, name)
    table = _source(catalog, source, name, team)
    entity = next((item for item in _entities() if item.join_key in table.schema), None)
    if entity is None:
        known = [item.join_key for item in _entities()]
        raise ScaffoldError.of(name, f"no entity's key is a column of {table.title}", known, "Declare an Entity first.")
    places = [_place(entity), _place(table)]
    return _written(
        PROJECT / "feature_assets" / team / f"{short}.py",
        FEATURES.substitute(
            title=_title(short),
            name=short,
            source=table.name,
            entity=places[0][1],
            key=entity.join_key,
            time=table.event_timestamp,
            imports=_imports([*places, ("mlops_assets", "Float64"), ("mlops_assets", "feature_view")]),
        ),
    )


def _new_name(catalog: Catalog, name: str) -> tuple[str, str]:
    """Team and short name of a declaration that there is not yet."""
    team, _, short = name.partition("/")
    if not (NAME.fullmatch(team) and NAME.fullmatch(short)) or iskeyword(team) or iskeyword(short):
        teams = {f"team {table.team}" for table in catalog.tables.values()}
        problem = "it is no <team>/<name> of words in lower case"
        raise ScaffoldError.of(name, problem, teams, "Write it like flights/early_departure.")
    if name in catalog.models or name in catalog.tables:
        raise ScaffoldError.of(name, "the name is taken", [*catalog.models, *catalog.tables], "Choose another.")
    return team, short


def _labels(catalog: Catalog, name: str, team: str) -> Labels:
    """The team's first label table; another team's is used only where it is named."""
    known = [table for table in catalog.tables.values() if isinstance(table, Labels)]
    own = next((table for table in known if table.team == team), None)
    if own is None:
        fix = f"Name one of these with --labels, or declare labels in feature_assets/{team}/ first."
        raise ScaffoldError.of(name, f"team {team!r} has no labels", [table.id for table in known], fix)
    return own


def _fitting(catalog: Catalog, table: Labels) -> list[FeatureView]:
    """The views keyed like the labels; of two that share a feature's name the first."""
    taken, fitting = set(table.request), []
    for view in catalog.views:
        if set(view.join_keys) <= set(table.join_keys) and not taken & set(view.schema):
            fitting.append(view)
            taken |= set(view.schema)
    return fitting


def _source(catalog: Catalog, asked: str | None, name: str, team: str) -> Source:
    timed = {
        table.id: table
        for table in catalog.tables.values()
        if isinstance(table, Source) and table.team == team and table.event_timestamp and table.partitions
    }
    if not timed or (asked and asked not in timed):
        problem = f"team {team!r} has no partitioned source {asked or ''}".rstrip()
        raise ScaffoldError.of(name, problem, timed, "A view reads the tables of its own team; declare a source first.")
    return timed[asked] if asked else next(iter(timed.values()))


def _entities() -> list[Entity]:
    modules = [module for package in PACKAGES for module in team_modules(import_module(package))]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Entity)]


def _place(item: FeatureView | Labels | Source | Entity) -> tuple[str, str]:
    """The module that declares an object, and its name there; modules that import it are passed over."""
    modules = [module for package in PACKAGES for module in team_modules(import_module(package))]
    found = [(module, name) for module in modules for name, value in vars(module).items() if value is item]
    if isinstance(item, Entity):
        return next(
            (module.__name__, name) for module, name in found if f"{name} = Entity(" in inspect.getsource(module)
        )
    return next((module.__name__, name) for module, name in found if module.__name__ == item.compute.__module__)


def _imports(places: Iterable[tuple[str, str]]) -> str:
    by_module: dict[str, list[str]] = {}
    for module, attribute in places:
        by_module.setdefault(module, []).append(attribute)
    return "\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(by_module.items()))


def _span(table: Labels) -> str:
    """Where the cutoffs begin and end: with the labels."""
    partitions = table.partitions
    if not isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return 'start_date="2024-01-01"'
    end = f', end_date="{partitions.end:%Y-%m-%d}"' if partitions.end else ""
    return f'start_date="{partitions.start:%Y-%m-%d}"{end}'


def _title(short: str) -> str:
    return short.replace("_", " ").capitalize()


def _written(path: Path, text: str) -> Path:
    """Write a new file whole; one that exists is the user's."""
    if path.exists():
        taken = [file.name for file in path.parent.glob("*.py")]
        raise ScaffoldError.of(path.name, f"{path.relative_to(PROJECT)} exists", taken, "Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").touch()
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    os.replace(beside, path)
    return path
