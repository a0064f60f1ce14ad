"""How a deployed platform starts a run: as a Job of its own on Kubernetes, as a process on plain servers.

One dagster.yaml serves both. What it says of Jobs (account, volumes, limits) is read only inside a cluster, so that
plain servers need neither the `kubernetes` extra nor its variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dagster import Permissive
from dagster._core.launcher import DefaultRunLauncher, RunLauncher
from dagster._serdes import ConfigurableClassData

IN_CLUSTER = "KUBERNETES_SERVICE_HOST"  # Kubernetes sets it in every container


class ClusterRunLauncher(DefaultRunLauncher):
    """Named in production's `dagster.yaml`; what it takes is what dagster_k8s.K8sRunLauncher takes."""

    @classmethod
    def config_type(cls) -> Any:
        if IN_CLUSTER not in os.environ:
            return Permissive()  # type: ignore[no-untyped-call]
        from dagster_k8s import K8sRunLauncher

        return K8sRunLauncher.config_type()  # type: ignore[no-untyped-call]

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> RunLauncher:  # type: ignore[override]
        if IN_CLUSTER not in os.environ:
            return DefaultRunLauncher(inst_data=inst_data)
        from resources.kubernetes.launcher import DeclaredRunLauncher

        return DeclaredRunLauncher(inst_data=inst_data, **config_value)
