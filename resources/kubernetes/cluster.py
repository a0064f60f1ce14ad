"""Which cluster, which namespace, which image, and what every pod of ours has besides. Asked, not guessed.

A run that the launcher started in the cluster hands on what it has itself: image, volumes, environment, account, as
`run_launcher` in dagster.yaml (and the code location's container context) says. Elsewhere, on a laptop say, and for
what is to be another, MLOPS_KUBERNETES names a YAML file in Dagster's words for a container context, and three more:

    image: registry.example/mlops:1.4.0
    kubeconfig: ~/.kube/config          # by default KUBECONFIG, or what a pod in the cluster is given
    context: training                   # by default the current one; MLOPS_COMPUTE_ADDRESS goes before it
    namespace: mlops
    env_secrets: [mlops]
    volumes: [{name: home, persistent_volume_claim: {claim_name: mlops-home}}]
    volume_mounts: [{name: home, mount_path: /srv/mlops}]
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
import yaml

from resources.environment import QUIET, environment, home
from resources.kubernetes.pods import SECURE, config

if TYPE_CHECKING:
    from dagster_k8s.container_context import K8sContainerContext

SETTINGS = "MLOPS_KUBERNETES"
OWN = ("image", "kubeconfig", "context")
RUN_IMAGE, CURRENT_IMAGE = "dagster/image", "DAGSTER_CURRENT_IMAGE"
SECONDS = 5.0  # for each answer of the API server
TEMPORARY = "/tmp"  # noqa: S108  in the pod, a volume of its own


class ClusterError(RuntimeError):
    """A cluster cannot be asked, or will not do what it is asked."""

    @classmethod
    def of(cls, problem: str, fix: str) -> Self:
        return cls(f"Kubernetes: {problem}. {fix}")


@dataclass(frozen=True)
class Cluster:
    """Where our pods go, and what they are like. Nothing is asked of it before `reach`."""

    kubeconfig: str | None
    context: str | None
    namespace: str
    image: str
    pods: K8sContainerContext

    @classmethod
    def of(cls, instance: dg.DagsterInstance, run: dg.DagsterRun | None = None, address: str = "") -> Self:
        """As the launcher of `run`, or of all runs, and the settings say. Raises ClusterError."""
        from dagster_k8s.container_context import K8sContainerContext

        told = _settings()
        own = {name: told.pop(name, None) for name in OWN}
        launcher = _launcher(instance)
        inherited = K8sContainerContext.create_for_run(run, launcher, include_run_tags=False) if run else None
        pods = (inherited or K8sContainerContext()).merge(_container_context(told))
        kubeconfig = own["kubeconfig"] or os.environ.get("KUBECONFIG")
        kubeconfig = str(Path(kubeconfig).expanduser()) if kubeconfig else None
        context = address or own["context"]
        namespace = pods.namespace or (launcher.job_namespace if launcher else None)
        namespace = namespace or _namespace(kubeconfig, context)
        return cls(kubeconfig, context, namespace, own["image"] or _image(run, launcher), pods)

    def pod(self, resources: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Metadata and spec of a pod that has what a declaration asks for, snake_case. Raises ClusterError.

        What is declared goes before what the cluster's pods have, and that before what is secure by itself.
        """
        from dagster_k8s.container_context import K8sContainerContext
        from dagster_k8s.job import UserDefinedDagsterK8sConfig

        def given(part: Mapping[str, Any]) -> K8sContainerContext:
            told = UserDefinedDagsterK8sConfig.from_dict(part)  # type: ignore[no-untyped-call]
            return K8sContainerContext(run_k8s_config=told)

        merged = given(self._secure()).merge(self.pods).merge(given(config(resources))).run_k8s_config
        container, spec = dict(merged.container_config), dict(merged.pod_spec_config)
        metadata = {name: dict(value) for name, value in merged.pod_template_spec_metadata.items()}
        container["image"] = container.get("image") or self.image
        if not container["image"]:
            fix = f"Name it: Resources(image=...), or `image` in the file that {SETTINGS} names."
            raise ClusterError.of("no image is named for the pods of this platform", fix)
        _see_home([mount["mount_path"] for mount in container.get("volume_mounts", ())])
        container["env"] = [*container.get("env", ()), *_environment()]
        return metadata, {**spec, "containers": [{"name": "work", **container}, *spec.get("containers", ())]}

    def reach(self) -> Any:
        """The API's client, once the cluster has answered. Raises ClusterError within seconds."""
        import kubernetes

        with told(f"context {self.context or 'current'}, {self.kubeconfig or 'default configuration'}"):
            self.configure()
            impatient = kubernetes.client.Configuration.get_default_copy()
            impatient.retries = 0  # with False, the client fails over its own words for a broken TLS
            once = kubernetes.client.ApiClient(impatient)
            kubernetes.client.VersionApi(once).get_code(_request_timeout=SECONDS)
        return kubernetes.client.CoreV1Api()

    def configure(self) -> None:
        """Let every client of this process ask this cluster."""
        import kubernetes
        from dagster_k8s.utils import apply_no_proxy_env_workaround

        if self.in_cluster:
            kubernetes.config.load_incluster_config()
        else:
            kubernetes.config.load_kube_config(self.kubeconfig, self.context)
        apply_no_proxy_env_workaround()

    @property
    def in_cluster(self) -> bool:
        """Whether this process is a pod of it, and no other one is named."""
        return not self.kubeconfig and not self.context and "KUBERNETES_SERVICE_HOST" in os.environ

    def _secure(self) -> Mapping[str, Any]:
        """SECURE; a pod that has a place for temporary files already gets no second one there."""
        mounts = self.pods.run_k8s_config.container_config.get("volume_mounts", ())
        if all(mount["mount_path"] != TEMPORARY for mount in mounts):
            return SECURE
        container = {name: value for name, value in SECURE["container_config"].items() if name != "volume_mounts"}
        pod = {name: value for name, value in SECURE["pod_spec_config"].items() if name != "volumes"}
        return {"container_config": container, "pod_spec_config": pod}


@contextmanager
def told(where: str) -> Iterator[None]:
    """What the API, or the way to it, raises, as a ClusterError that says where, what and what to do."""
    import kubernetes
    from urllib3.exceptions import HTTPError

    try:
        yield
    except kubernetes.config.ConfigException as problem:
        fix = f"Name a kubeconfig and its context in the file that {SETTINGS} names, or in KUBECONFIG."
        why = str(problem).rstrip(".")
        raise ClusterError.of(f"there is no configuration of a cluster ({where}): {why}", fix) from problem
    except HTTPError as problem:
        host = kubernetes.client.Configuration.get_default_copy().host
        fix = "Look whether it is up (`kubectl version`) and whether this machine may reach it."
        raise ClusterError.of(f"the API server {host} ({where}) does not answer: {problem}", fix) from problem
    except kubernetes.client.ApiException as problem:
        raise ClusterError.of(f"the API server refuses ({where}): {refusal(problem)}", _fix(problem)) from problem


def refusal(problem: Any) -> str:
    """What the API server said, without headers: its status and message."""
    import json

    try:
        message = json.loads(problem.body)["message"]
    except (KeyError, TypeError, ValueError):
        message = problem.reason
    return f"{problem.status} {message}"


def _fix(problem: Any) -> str:
    if problem.status == 401:
        return "Renew the credentials of the kubeconfig."
    if problem.status == 403:
        return (
            "Give the account the right that is named (deployment/kubernetes has a Role), or the namespace more quota."
        )
    return "Mend what it names."


def _settings() -> dict[str, Any]:
    if not (path := os.environ.get(SETTINGS)):
        return {}
    try:
        found = yaml.safe_load(Path(path).expanduser().read_text())
    except (OSError, yaml.YAMLError) as problem:
        raise ClusterError.of(
            f"{SETTINGS} names {path}, which cannot be read: {problem}", "Name a YAML file, or unset it."
        ) from None
    if not isinstance(found, dict):
        raise ClusterError.of(f"{path} ({SETTINGS}) holds no mapping", "Write `image: ...` and so on, a line each.")
    return found


def _container_context(told: Mapping[str, Any]) -> K8sContainerContext:
    """In Dagster's words; Dagster says what is wrong with them."""
    from dagster._core.errors import DagsterInvalidConfigError
    from dagster_k8s.container_context import K8sContainerContext

    try:
        return K8sContainerContext.create_from_config({"k8s": dict(told)})
    except DagsterInvalidConfigError as problem:
        fix = f"What it may hold: {', '.join(OWN)} and what Dagster's container context for k8s has."
        raise ClusterError.of(f"{os.environ.get(SETTINGS)} ({SETTINGS}): {problem}", fix) from problem


def _launcher(instance: dg.DagsterInstance) -> Any:
    """Dagster's launcher for Kubernetes, where this instance has it."""
    from dagster_k8s import K8sRunLauncher

    return instance.run_launcher if isinstance(instance.run_launcher, K8sRunLauncher) else None


def _image(run: dg.DagsterRun | None, launcher: Any) -> str:
    """The run's own: as the launcher noted it, as its code location says, as all runs have it."""
    origin = run.job_code_origin.repository_origin if run and run.job_code_origin else None
    named = (
        run.tags.get(RUN_IMAGE) if run else None,
        origin.container_image if origin else None,
        launcher.job_image if launcher else None,
        os.environ.get(CURRENT_IMAGE),
    )
    return next((image for image in named if image), "")


def _namespace(kubeconfig: str | None, context: str | None) -> str:
    """A pod's own; else the one of the kubeconfig's context."""
    import kubernetes
    from dagster_k8s.utils import detect_current_namespace

    if found := detect_current_namespace(None):
        return found
    try:
        contexts, current = kubernetes.config.list_kube_config_contexts(kubeconfig)
    except kubernetes.config.ConfigException:
        return "default"  # `reach` says what is wrong with it
    named = next((one for one in contexts if one["name"] == context), current)
    return str(named["context"].get("namespace") or "default")


def _see_home(mounts: list[str]) -> None:
    """The work reads and writes under MLOPS_HOME: a pod that does not see it would lose everything, hours later."""
    lasting = [mount for mount in mounts if mount != TEMPORARY]
    if not any(home().is_relative_to(mount) for mount in lasting):
        told = ", ".join(lasting) or "none"
        raise ClusterError.of(
            f"no volume of the pods is mounted at MLOPS_HOME, {home()} (mounted: {told})",
            f"Mount the claim that holds it: `volumes`, `volume_mounts` in dagster.yaml or in what {SETTINGS} names.",
        )


def _environment() -> list[dict[str, str]]:
    """What the work reads of the environment that is no secret; secrets come by `env_secrets`."""
    said = {"MLOPS_HOME": str(home()), "MLOPS_ENV": environment(), **QUIET}
    return [{"name": name, "value": value} for name, value in said.items()]
