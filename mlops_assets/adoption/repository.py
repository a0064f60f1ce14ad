"""A Feast repository on disk: its `feature_store.yaml`, and where its registry says what it holds.

A registry that is a file is read in place, so definitions say what it says now. Any other (SQL, a server, an object
store, a class of one's own) only Feast can ask; its answer is kept as a snapshot, which `adopt` refreshes:

    <home>/adopted/<project>-<digest>.pb      the registry's message, as a file registry holds it

No code of the repository runs here, and no address is printed: it may hold a password.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from filelock import FileLock

from mlops_assets.adoption.registry import NAME, Registered, UnfitNameError, registered
from resources.environment import home

if TYPE_CHECKING:
    from feast import FeatureStore

CONFIGURATION = "feature_store.yaml"
SAID = 3  # lines of a failed child that a message repeats


class NoRepositoryError(LookupError):
    """A directory has no feature_store.yaml."""

    @classmethod
    def of(cls, root: Path, below: Iterable[Path]) -> Self:
        near = ", ".join(str(path.parent) for path in sorted(below))
        hint = f"There is one in {near}; name that." if near else "feast init makes a new repository."
        return cls(f"{root} is no Feast repository: it has no {CONFIGURATION}. {hint}")


class BadConfigurationError(ValueError):
    """feature_store.yaml does not say what Feast needs."""

    @classmethod
    def of(cls, file: Path, problem: str) -> Self:
        return cls(f"{file}: {problem}. Mend it; feast apply, run in that directory, must accept it.")


class NoRegistryError(LookupError):
    """The registry's file is not there."""

    @classmethod
    def of(cls, root: Path, registry: Path) -> Self:
        return cls(f"The Feast repository {root} has no registry yet ({registry}). Run feast apply in {root}.")


class NoSnapshotError(LookupError):
    """A registry that is no file was not yet asked."""

    @classmethod
    def of(cls, root: Path, kind: str) -> Self:
        return cls(
            f"The registry of {root} is no local file (it is {kind}), and nothing is known of it here. "
            f"Run: mlops features adopt {root}"
        )


class UnreachableRegistryError(RuntimeError):
    """Feast itself could not read the registry."""

    @classmethod
    def of(cls, root: Path, kind: str, said: str) -> Self:
        return cls(
            f"Feast could not read the registry of {root} ({kind}); an older snapshot, if any, still stands. "
            f"See that its server answers from here, then run again: mlops features adopt {root}\nFeast said:\n{said}"
        )


@dataclass(frozen=True)
class FeastRepository:
    """Where a repository is, its project, and its registry as feature_store.yaml names it."""

    root: Path
    project: str
    registry: Mapping[str, Any]

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Self:
        """The repository in a directory. Raises NoRepositoryError, BadConfigurationError, UnfitNameError."""
        root = Path(path).expanduser().resolve()
        file = root / CONFIGURATION
        if not file.is_file():
            raise NoRepositoryError.of(root, root.glob(f"*/{CONFIGURATION}"))
        said = _configuration(file)
        project = said.get("project")
        if not isinstance(project, str):
            raise BadConfigurationError.of(file, "it names no project")
        if not NAME.match(project):
            raise UnfitNameError.of("project", project)
        registry = said.get("registry") or "data/registry.db"  # Feast's own default
        if not isinstance(registry, str | dict):
            raise BadConfigurationError.of(file, "its registry is neither a path nor a mapping")
        return cls(root, project, {"path": registry} if isinstance(registry, str) else registry)

    @property
    def file(self) -> Path | None:
        """The registry's file; None where only Feast knows how to ask."""
        place = urlsplit(str(self.registry.get("path", "")))
        plain = self.registry.get("registry_type", "file") == "file" and "registry_store_type" not in self.registry
        return self.root / place.path if plain and place.scheme in ("", "file") else None

    @property
    def kind(self) -> str:
        """What sort of registry, without its address."""
        scheme = urlsplit(str(self.registry.get("path", ""))).scheme
        kind = self.registry.get("registry_store_type") or self.registry.get("registry_type", "file")
        return f"{kind} over {scheme}" if scheme else str(kind)

    @property
    def snapshot(self) -> Path:
        return self._state("pb")

    @property
    def lock(self) -> FileLock:
        """Changes of the registry take turns on this machine: concurrent ones lose each other (feast #6663)."""
        path = self._state("lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)

    @property
    def known_from(self) -> str:
        """Where what is known was read, for people."""
        if self.file:
            return str(self.file)
        taken = datetime.fromtimestamp(self.snapshot.stat().st_mtime, UTC)
        return f"{self.kind}, as of {taken:%Y-%m-%d %H:%M} UTC"

    def read(self) -> Registered:
        """What the registry holds of this project.

        Raises NoRegistryError, NoSnapshotError, UnreadableRegistryError, UnfitNameError.
        """
        where = self.file or self.snapshot
        if not where.is_file():
            raise NoRegistryError.of(self.root, where) if self.file else NoSnapshotError.of(self.root, self.kind)
        return registered(where.read_bytes(), self.project, where)

    def refresh(self) -> None:
        """Ask Feast what the registry holds, in a process of its own; only a whole answer replaces the snapshot."""
        self.snapshot.parent.mkdir(parents=True, exist_ok=True)
        beside = self.snapshot.with_name(f".{self.snapshot.name}.{os.getpid()}")
        command = [sys.executable, "-m", "mlops_assets.adoption.snapshot", str(self.root), str(beside)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            beside.unlink(missing_ok=True)
            raise UnreachableRegistryError.of(self.root, self.kind, _last_words(ran.stderr))
        os.replace(beside, self.snapshot)

    @contextmanager
    def store(self) -> Iterator[FeatureStore]:
        """The repository's own Feast, with its modules importable: a transform or a store class may live there."""
        from feast import FeatureStore

        sys.path.insert(0, str(self.root))
        try:
            yield FeatureStore(repo_path=str(self.root))
        finally:
            sys.path.remove(str(self.root))

    def _state(self, suffix: str) -> Path:
        """Named without the registry's address: a new password must not lose what is known."""
        digest = sha256(f"{self.root} {self.kind}".encode()).hexdigest()[:12]
        return home() / "adopted" / f"{self.project}-{digest}.{suffix}"


def _last_words(said: str) -> str:
    """The end of what a process said, without the lines of its traceback, which are indented."""
    lines = [line for line in said.splitlines() if line and not line[0].isspace()]
    return "\n".join(f"  | {line}" for line in lines[-SAID:])


def _configuration(file: Path) -> dict[str, Any]:
    import yaml

    try:
        said = yaml.safe_load(os.path.expandvars(file.read_text()))
    except yaml.YAMLError as error:
        raise BadConfigurationError.of(file, f"it is no YAML ({error})") from error
    if not isinstance(said, dict):
        raise BadConfigurationError.of(file, "it is not a mapping")
    return said
