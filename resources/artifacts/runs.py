"""The artifacts of MLflow's runs, each content stored once in an experiment's place.

    <location>/objects/<first two>/<sha256>         every content once
    <location>/<run>/artifacts/<path>.sha256        what the run's directory holds: the manifest, written last
    <location>/<run>/artifacts/<path>/...           hard links to the objects; only where the location is a directory

Where it is none (S3, a tracking server), a run has its manifest alone, and `fetched` puts the directory together from
the objects. Artifacts that were logged before there were manifests are read as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from resources.artifacts.manifest import (
    SUFFIX,
    DamagedArtifactError,
    Manifest,
    file_hash,
    manifest_path,
    verified,
)
from resources.artifacts.objects import ObjectStore
from resources.environment import home

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

OBJECTS = "objects"
TAG = "artifacts_sha256"  # of a version: the digest of the manifest that it was registered with


class ForeignArtifactsError(RuntimeError):
    """The artifacts of a version are whole, but not those that were registered."""

    @classmethod
    def of(cls, source: str, registered: str, found: str | None) -> Self:
        return cls(
            f"{source} holds other artifacts than those that were registered (sha256 {registered[:16]}, now "
            f"{(found or 'no manifest')[:16]}). Nothing was used. Put them back from a copy, or register them anew."
        )


def published(directory: Path, artifacts: str, path: str, tracking_uri: str) -> Manifest:
    """Make a directory what the run, whose artifacts are at the URI, holds at `path`."""
    if (here := local(artifacts)) is not None:
        return _linked(directory, here / path, here.parents[1] / OBJECTS)
    return _uploaded(directory, artifacts, path, tracking_uri)


def fetched(source: str, run_id: str, tracking_uri: str, registered: str | None) -> Path:
    """The directory of a run's artifacts on this machine, verified.

    `registered` is the digest that it must have. Raises DamagedArtifactError, ForeignArtifactsError.
    """
    if (directory := local(source)) is None:
        directory = home() / "mlflow" / "downloads" / run_id / Path(source).name
        if not (directory.is_dir() and _whole(directory, registered)):
            _downloaded(source, directory, tracking_uri)
    manifest = Manifest.beside(directory)
    found = manifest.digest if manifest else None
    if registered not in (None, found):
        raise ForeignArtifactsError.of(source, str(registered), found)
    return verified(directory)


def digest(source: str, tracking_uri: str) -> str | None:
    """The digest of what is published at a URI; None for what has no manifest."""
    manifest = _manifest(source, tracking_uri)
    return manifest.digest if manifest else None


def local(uri: str) -> Path | None:
    """The directory that a URI names; None where it is none of this machine."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _linked(directory: Path, target: Path, objects: Path) -> Manifest:
    """What was there before goes first, manifest foremost: half of one and half of the other would be no version."""
    store = ObjectStore(objects)
    if (before := Manifest.beside(target)) is not None and before == Manifest.of(directory) == Manifest.of(target):
        return before
    manifest_path(target).unlink(missing_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    names = [path.relative_to(directory).as_posix() for path in files]
    manifest = Manifest({name: store.place(path, target / name) for name, path in zip(names, files, strict=True)})
    manifest.write(target)
    return manifest


def _whole(directory: Path, registered: str | None) -> bool:
    manifest = Manifest.beside(directory)
    return manifest is None if registered is None else manifest is not None and not manifest.damage(directory)


def _uploaded(directory: Path, artifacts: str, path: str, tracking_uri: str) -> Manifest:
    manifest = Manifest.of(directory)
    blobs = _Blobs.of(artifacts.rsplit("/", 2)[0], tracking_uri)
    for name, content in manifest.hashes.items():
        blobs.put(directory / name, content)
    with TemporaryDirectory() as scratch:
        written = Path(scratch, path.rpartition("/")[2] + SUFFIX)
        written.write_text(manifest.text(path.rpartition("/")[2]))
        _repository(artifacts, tracking_uri).log_artifact(str(written), path.rpartition("/")[0] or None)
    return manifest


def _downloaded(source: str, directory: Path, tracking_uri: str) -> None:
    """Publish a download whole, by rename: a directory that is there is complete."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory.parent) as scratch:
        beside = Path(scratch, directory.name)
        manifest = _manifest(source, tracking_uri)
        if manifest is None:
            _plain(source, beside, tracking_uri)
        else:
            blobs = _Blobs.of(source.rpartition("/artifacts/")[0].rsplit("/", 1)[0], tracking_uri)
            store = ObjectStore(home() / "mlflow" / "downloads" / OBJECTS)
            for name, content in manifest.hashes.items():
                blobs.get(content, store, beside / name, f"{source}/{name}")
            manifest.write(directory)
        shutil.rmtree(directory, ignore_errors=True)
        try:
            beside.rename(directory)
        except OSError:
            if not directory.is_dir():  # else another process was first: a version never changes
                raise


def _plain(source: str, into: Path, tracking_uri: str) -> None:
    import mlflow.artifacts

    with TemporaryDirectory(dir=into.parent) as scratch:
        got = mlflow.artifacts.download_artifacts(source, dst_path=scratch, tracking_uri=tracking_uri)
        Path(got).rename(into)


def _manifest(source: str, tracking_uri: str) -> Manifest | None:
    """The manifest beside a URI."""
    if (here := local(source)) is not None:
        return Manifest.beside(here)
    parent, name = source.rsplit("/", 1)
    repository = _repository(parent, tracking_uri)
    if name + SUFFIX not in _sizes(repository, None):
        return None
    with TemporaryDirectory() as scratch:
        got = Path(repository.download_artifacts(name + SUFFIX, dst_path=scratch))
        return Manifest.parse(got.read_text(), source + SUFFIX)


def _repository(uri: str, tracking_uri: str) -> ArtifactRepository:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each blob tells nobody anything
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=tracking_uri)


def _sizes(repository: ArtifactRepository, path: str | None) -> Mapping[str, int]:
    return {one.path.rpartition("/")[2]: one.file_size for one in repository.list_artifacts(path) if not one.is_dir}


class _Blobs:
    """Objects where only whole files can be put and got."""

    def __init__(self, repository: Any) -> None:
        self._repository = repository

    @classmethod
    def of(cls, location: str, tracking_uri: str) -> Self:
        return cls(_repository(f"{location}/{OBJECTS}", tracking_uri))

    def put(self, path: Path, content: str) -> None:
        """Upload a file unless it is there; one of another size is what a broken upload left."""
        if _sizes(self._repository, content[:2]).get(content) == path.stat().st_size:
            return
        with TemporaryDirectory() as scratch:
            named = Path(scratch, content)
            named.symlink_to(path.resolve())
            self._repository.log_artifact(str(named), content[:2])

    def get(self, content: str, store: ObjectStore, target: Path, what: str) -> None:
        """Put a blob at `target` by way of the store. Raises DamagedArtifactError for one that is not its name's."""
        known = store.path(content)
        if not store.intact(known):
            with TemporaryDirectory() as scratch:
                got = Path(self._repository.download_artifacts(f"{content[:2]}/{content}", dst_path=scratch))
                if file_hash(got) != content:
                    raise DamagedArtifactError.of(target.parent, {what: "was changed where it is stored"})
                store.place(got, target)
        else:
            store.place(known, target)
