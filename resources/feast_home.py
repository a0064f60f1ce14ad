"""Feast's own state below MLOPS_HOME: what `feature_assets/feature_store.yaml` names.

Feast expands environment variables in its yaml but knows no default for one that is unset, so the yaml names
these classes instead of paths; they look where `resources.environment.home()` says. The registry is replaced
whole, and never by a writer that has not seen the newest: concurrent changes lose nothing.

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

from resources.environment import home


class StaleRegistryError(RuntimeError):
    """Somebody else changed the registry since this writer read it."""

    @classmethod
    def of(cls, path: Path) -> Self:
        return cls(f"{path} was changed by somebody else meanwhile; nothing was written. Apply again.")


class HomeRegistryStore(FileRegistryStore):
    """The registry file, `<home>/feast/<path>`."""

    def __init__(self, registry_config: RegistryConfig, repo_path: Path) -> None:  # noqa: ARG002  Feast's signature
        super().__init__(registry_config, home() / "feast")

    def _write_registry(self, registry_proto: Registry) -> None:
        self._filepath.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self._filepath}.lock"):
            if self._filepath.exists() and self.get_registry_proto().version_id != registry_proto.version_id:
                raise StaleRegistryError.of(self._filepath)
            registry_proto.version_id = str(uuid4())
            registry_proto.last_updated.FromDatetime(_utc_now())
            beside = self._filepath.with_name(f".{self._filepath.name}.{uuid4().hex}.tmp")
            beside.write_bytes(registry_proto.SerializeToString())
            os.replace(beside, self._filepath)
