"""Is everything what was saved? Each registered version, each Bento, each object: every byte is read.

A version elsewhere (S3, a server) is put together here to be read, as it would be to be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resources.artifacts.manifest import DamagedArtifactError, Manifest, UnreadableManifestError, verified
from resources.artifacts.objects import ObjectStore
from resources.artifacts.runs import OBJECTS, ForeignArtifactsError, local
from resources.environment import home

if TYPE_CHECKING:
    from resources.bentos import BentoStore
    from resources.mlflow import MlflowResource

WHOLE, UNKNOWN = "whole", "has no manifest"


@dataclass(frozen=True)
class Finding:
    """How one thing stands; `whole` is what can be used."""

    what: str
    problem: str = WHOLE

    @property
    def whole(self) -> bool:
        return self.problem in (WHOLE, UNKNOWN)


def object_stores(mlflow: MlflowResource) -> list[ObjectStore]:
    """Those of experiments on this machine, and of what was downloaded."""
    places = [local(experiment.artifact_location) for experiment in mlflow.experiments()]
    roots = {place / OBJECTS for place in places if place is not None}
    return [ObjectStore(root) for root in sorted({*roots, home() / "mlflow" / "downloads" / OBJECTS}) if root.is_dir()]


def versions(mlflow: MlflowResource, names: Iterable[str]) -> Iterator[Finding]:
    """Each version of these registered models, oldest first."""
    for name in names:
        for version in reversed(mlflow.versions(name)):
            what = f"{name} version {version.version}"
            try:
                directory = mlflow.download(name, version.version)
            except (DamagedArtifactError, ForeignArtifactsError, UnreadableManifestError, OSError) as problem:
                yield Finding(what, str(problem))
            else:
                yield Finding(what, WHOLE if Manifest.beside(directory) else _lost_or_old(directory.is_dir()))


def bentos(store: BentoStore) -> Iterator[Finding]:
    """Each Bento's bundle, which must also be the one that its tag was made of."""
    for tag in store.list():
        try:
            manifest = Manifest.beside(verified(store.path(tag)))
        except (DamagedArtifactError, UnreadableManifestError, OSError) as problem:
            yield Finding(f"Bento {tag}", str(problem))
            continue
        if manifest is None:
            yield Finding(f"Bento {tag}", UNKNOWN)
        elif manifest.digest[:16] != tag.partition(":")[2]:
            yield Finding(f"Bento {tag}", f"it holds another bundle ({manifest.digest[:16]}) than its tag says")
        else:
            yield Finding(f"Bento {tag}")


def objects(stores: Iterable[ObjectStore]) -> Iterator[Finding]:
    """The damaged objects. One that nothing else can use is mended by the next save of its content."""
    for store in stores:
        for path in store.damaged():
            yield Finding(f"object {path.name}", f"{path} is not what its name says")


def _lost_or_old(there: bool) -> str:
    return UNKNOWN if there else "its files are gone"
