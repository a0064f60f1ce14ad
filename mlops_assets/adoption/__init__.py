"""A Feast repository that exists already, as Dagster assets, lineage and checks: one line, or a YAML component.

    defs = feast_repository("path/to/repo")

    type: mlops_assets.adoption.FeastRepositoryComponent
    attributes: {path: ../path/to/repo}         # relative to the file

Loading definitions reads the registry and nothing else: neither Feast nor the repository's code is imported.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from mlops_assets.adoption.assets import Adopted
from mlops_assets.adoption.registry import Registered
from mlops_assets.adoption.repository import FeastRepository
from mlops_assets.catalog import UnknownDeclarationError

__all__ = ["FeastRepositoryComponent", "adopt", "feast_repository"]


def feast_repository(
    path: str | os.PathLike[str],
    *,
    views: Sequence[str] | None = None,
    owners: Sequence[str] = (),
    cron: str | None = None,
) -> dg.Definitions:
    """Everything that the registry of the repository at `path` holds, or `views` with all that they are made from.

    `owners` are of what names none itself; `cron` (UTC) says when Dagster's automation brings the views online.
    Raises NoRepositoryError, BadConfigurationError, NoRegistryError, NoSnapshotError, UnreadableRegistryError,
    UnfitNameError, UnknownDeclarationError.
    """
    repository = FeastRepository.at(path)
    known = repository.read()
    return Adopted(repository, _chosen(known, views), owners, cron).definitions()


def _chosen(known: Registered, views: Sequence[str] | None) -> Registered:
    if views is None:
        return known
    for name in views:
        if name not in known.views:
            raise UnknownDeclarationError.of("feature view", name, known.views)
    return known.only(views)


def adopt(path: str | os.PathLike[str]) -> str:
    """Read, or ask anew, what the registry of a repository holds; says what there is and how to use it.

    Raises what `feast_repository` does, and UnreachableRegistryError.
    """
    repository = FeastRepository.at(path)
    if repository.file is None:
        repository.refresh()
    known = repository.read()
    online = sum(view.online for view in known.views.values())
    return (
        f"{repository.project}: {len(known.sources)} data sources, {len(known.views)} feature views ({online} of them "
        f"online), {len(known.services)} feature services, read from {repository.known_from}.\n"
        f'In Python: defs = mlops_assets.adoption.feast_repository("{repository.root}")\n'
        "In a defs.yaml: {type: mlops_assets.adoption.FeastRepositoryComponent, "
        f"attributes: {{path: {repository.root}}}}}"
    )


class FeastRepositoryComponent(dg.Component, dg.Model, dg.Resolvable):
    """An existing Feast repository as assets, lineage and checks."""

    path: str
    views: Sequence[str] | None = None
    owners: Sequence[str] = ()
    cron: str | None = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Where `path` is relative, it is so to the folder of the component."""
        root = Path(context.path, Path(self.path).expanduser())
        return feast_repository(root, views=self.views, owners=self.owners, cron=self.cron)
