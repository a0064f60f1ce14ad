"""What a declaration means for a pod, as plain data: in the words of Dagster's `dagster-k8s/config`, snake_case.

No pod of ours runs as root, gains rights, or writes outside of its volumes; a platform's own settings for its pods (see
`cluster`) may say otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from resources.environment import COMPUTE

CONFIG, RETRIES = "dagster-k8s/config", "mlops/retries"
GPU = "nvidia.com/gpu"
MIB = 1024
# Which nodes are spot ones, as the clouds and Karpenter label them; some of them also keep other pods away by a taint.
SPOT = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "kubernetes.azure.com/scalesetpriority": "spot",
    "karpenter.sh/capacity-type": "spot",
    "node.kubernetes.io/lifecycle": "spot",
}

Config = dict[str, dict[str, Any]]

SECURE: Config = {
    "container_config": {
        "security_context": {
            "allow_privilege_escalation": False,
            "read_only_root_filesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volume_mounts": [{"name": "tmp", "mount_path": "/tmp"}],  # noqa: S108  the pod's own, gone with it
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108  where libraries keep what they cache
    },
    "pod_spec_config": {
        "security_context": {"run_as_non_root": True, "seccomp_profile": {"type": "RuntimeDefault"}},
        "automount_service_account_token": False,
        "enable_service_links": False,
        "volumes": [{"name": "tmp", "empty_dir": {}}],
    },
}


def config(resources: Mapping[str, Any]) -> Config:
    """What `declarations.Resources.document` asks for, as `dagster-k8s/config`; what it leaves out, that leaves out."""
    container: dict[str, Any] = {}
    if asked := quantities(resources):
        given = {name: amount for name, amount in asked.items() if name != GPU}
        container["resources"] = {"limits": asked} | ({"requests": given} if given else {})
    if image := resources.get("image"):
        container["image"] = image
    if cpus := resources.get("cpus"):  # else a library counts the node's cores, and its threads take turns on ours
        container["env"] = [{"name": "OMP_NUM_THREADS", "value": str(math.ceil(cpus))}]
    pod: dict[str, Any] = {}
    if selector := resources.get("node_selector"):
        pod["node_selector"] = dict(selector)
    if tolerations := [*resources.get("tolerations", ()), *(_spot_tolerations() if resources.get("spot") else ())]:
        pod["tolerations"] = [dict(one) for one in tolerations]
    if resources.get("spot"):
        pod["affinity"] = _spot_nodes()
    if account := resources.get("service_account"):
        pod["service_account_name"] = account
    parts = {"container_config": container, "pod_spec_config": pod}
    return {name: part for name, part in parts.items() if part}


def quantities(resources: Mapping[str, Any]) -> dict[str, str]:
    """CPUs, memory and GPUs in Kubernetes' units; what is asked for is also the limit, so that nobody is evicted first.

    A GPU is never shared, and is no request of its own.
    """
    cpus, memory, gpus = (resources.get(name) for name in ("cpus", "memory_gb", "gpus"))
    asked = {
        "cpu": f"{math.ceil(cpus * 1000)}m" if cpus else "",
        "memory": f"{math.ceil(memory * MIB)}Mi" if memory else "",
        GPU: str(gpus) if gpus else "",
    }
    return {name: amount for name, amount in asked.items() if amount}


def op_tags(compute: str, resources: Mapping[str, Any]) -> dict[str, Any]:
    """What the step that trains says of the machine that its run needs, by its compute or the environment's.

    Nothing where the training has a pod of its own: two would ask for the same GPU, and one of them never get it.
    """
    if (compute or os.environ.get(COMPUTE)) == "kubernetes":
        return {}
    retries = resources.get("retries", 0)
    tags: dict[str, Any] = {CONFIG: config(resources), RETRIES: str(retries) if retries else ""}
    return {name: value for name, value in tags.items() if value}


def _spot_tolerations() -> list[dict[str, str]]:
    return [{"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in SPOT.items()]


def _spot_nodes() -> dict[str, Any]:
    """One of the labels; the terms of a selector are alternatives."""
    terms = [{"match_expressions": [{"key": key, "operator": "In", "values": [value]}]} for key, value in SPOT.items()]
    wanted = {"node_selector_terms": terms}
    return {"node_affinity": {"required_during_scheduling_ignored_during_execution": wanted}}
