"""Feast's own registry below MLOPS_HOME: what `feature_assets/feature_store.yaml` names.

Feast expands environment variables in its yaml but knows no default for one that is unset, so the yaml names this
class instead of a path; it looks where `resources.environment.home()` says. The registry is replaced whole, never by
a writer that has not seen the newest: what others registered meanwhile is put together with it, by Feast's own
command line too.

Imported by Feast, when a configuration names it; hence Feast at the top.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self
from uuid import uuid4

from feast.infra.registry.file import FileRegistryStore
from feast.protos.feast.core.Registry_pb2 import Registry
from feast.repo_config import RegistryConfig
from feast.utils import _utc_now
from filelock import FileLock
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from resources.environment import home
from resources.registry_merge import RegistryConflictError, merged

VERSIONS = 4  # a writer holds one or two versions of the registry at a time


class StaleRegistryError(RuntimeError):
    """Somebody else changed the same object of the registry since this writer read it."""

    @classmethod
    def of(cls, path: Path, why: RegistryConflictError) -> Self:
        return cls(f"{path} was changed by somebody else meanwhile; nothing was written. {why}")


class RegistryUnreachableError(RuntimeError):
    """The registry is there, as far as can be told, but cannot be read or written."""

    @classmethod
    def of(cls, path: Path, why: Exception) -> Self:
        return cls(
            f"Feast's registry {path} cannot be used ({type(why).__name__}: {why}). Nothing was changed. See that the "
            "disk is there and may be written; a damaged file can be deleted, `feast apply` registers everything anew."
        )


class HomeRegistryStore(FileRegistryStore):
    """The registry file, `<home>/feast/<path>`.

    Feast changes the registry it was last given, and commits it at the end. It also reads the file anew in between,
    whenever somebody else wrote it, and would forget its own changes: they are carried over to what it is given.
    """

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:  # noqa: ARG002  Feast's signature
        super().__init__(registry_config, home() / "feast")
        self._read: dict[str, bytes] = {}
        self._given: Registry | None = None

    def get_registry_proto(self) -> Registry:
        """With what was changed in the one given last and is not written yet.

        Raises FileNotFoundError, upon which Feast makes a new one, RegistryUnreachableError, or StaleRegistryError.
        """
        registry, (changed, self._given) = self._current(), (self._given, None)
        self._remember(registry)
        if changed is not None and changed.version_id in self._read:
            registry.CopyFrom(self._put_together(changed, registry))
        self._given = registry
        return registry

    def _current(self) -> Registry:
        try:
            return super().get_registry_proto()
        except FileNotFoundError:
            raise
        except (OSError, DecodeError) as error:
            raise RegistryUnreachableError.of(self._filepath, error) from error

    def _remember(self, registry: Registry) -> None:
        self._read[registry.version_id] = registry.SerializeToString()
        while len(self._read) > VERSIONS:
            del self._read[next(iter(self._read))]

    def _write_registry(self, registry_proto: Registry) -> None:
        try:
            self._filepath.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._filepath}.lock"):
                self._take_in_what_others_wrote(registry_proto)
                registry_proto.version_id = str(uuid4())
                registry_proto.last_updated.FromDatetime(_utc_now())
                beside = self._filepath.with_name(f".{self._filepath.name}.{uuid4().hex}.tmp")
                beside.write_bytes(registry_proto.SerializeToString())
                os.replace(beside, self._filepath)
        except OSError as error:
            raise RegistryUnreachableError.of(self._filepath, error) from error
        self._remember(registry_proto)
        self._given = registry_proto

    def _take_in_what_others_wrote(self, registry: Registry) -> None:
        if not self._filepath.exists():
            return
        theirs = self._current()
        if theirs.version_id == registry.version_id:
            return
        registry.CopyFrom(self._put_together(registry, theirs))

    def _put_together(self, mine: Registry, theirs: Registry) -> Registry:
        base = Registry()
        base.ParseFromString(self._read.get(mine.version_id, b""))
        try:
            return merged(base, mine, theirs)
        except RegistryConflictError as error:
            raise StaleRegistryError.of(self._filepath, error) from error
