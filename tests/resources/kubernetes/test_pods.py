"""What a declaration means for a pod, and what every pod of ours is like."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster_k8s.models import k8s_model_from_dict
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiClient, V1PodSpec

from mlops_assets import Resources
from resources.environment import QUIET
from resources.kubernetes.cluster import SETTINGS, Cluster, ClusterError
from resources.kubernetes.pods import SPOT
from tests.resources.kubernetes.api_server import VERSIONS, configured

words = st.text("abc", min_size=1)
tolerations = st.fixed_dictionaries({"key": words, "operator": st.just("Exists")})
declared = st.builds(
    Resources,
    cpus=st.none() | st.floats(0.01, 256),
    memory_gb=st.none() | st.floats(0.01, 4096),
    gpus=st.integers(0, 16),
    node_selector=st.dictionaries(words, words, max_size=2),
    tolerations=st.lists(tolerations, max_size=2),
    spot=st.booleans(),
    start_within=st.just(timedelta(minutes=1)),
    service_account=st.just("") | words,
    image=st.just("") | words,
)


@pytest.fixture
def cluster(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The settings alone: nothing is asked."""
    monkeypatch.setenv(SETTINGS, str(configured(tmp_path, "http://127.0.0.1:1", home, namespace="training")))
    with dg.DagsterInstance.ephemeral() as instance:
        return Cluster.of(instance)


def as_json(spec: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = ApiClient().sanitize_for_serialization(k8s_model_from_dict(V1PodSpec, spec))
    return told


VOLUME = Path("/var/lib/mlops")  # /tmp is the pod's own


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The same for a law."""
    root = tmp_path_factory.mktemp("settled")
    with pytest.MonkeyPatch.context() as monkeypatch, dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.setenv("MLOPS_HOME", str(root))
        monkeypatch.setenv(SETTINGS, str(configured(root, "http://127.0.0.1:1", VOLUME)))
        return Cluster.of(instance)


@settings(max_examples=20)  # the schemas are read from disk each time
@given(resources=declared)
def test_whatever_is_declared_is_a_pod_that_kubernetes_takes(settled: Cluster, resources: Resources) -> None:
    """Held to the official schemas; it asks for what it is limited to, and no less than was declared."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLOPS_HOME", str(VOLUME / "home"))
        _, spec = settled.pod(resources.document)
    told = as_json(spec)
    for version in VERSIONS:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": told}
        kubernetes_validate.validate(pod, version, strict=True)
    asked = told["containers"][0].get("resources", {"limits": {}, "requests": {}})
    shared = {name: amount for name, amount in asked["limits"].items() if name != "nvidia.com/gpu"}
    assert asked.get("requests", {}) == shared
    assert ("nvidia.com/gpu" in asked["limits"]) == (resources.gpus > 0)
    if resources.memory_gb:
        assert int(shared["memory"].removesuffix("Mi")) >= resources.memory_gb * 1024
    spot = {one["key"] for one in told.get("tolerations", ())} & set(SPOT)
    assert spot == (set(SPOT) if resources.spot else set())


def test_no_pod_of_ours_is_root_or_writes_outside_of_its_volumes(cluster: Cluster) -> None:
    _, spec = cluster.pod({})
    told = as_json(spec)
    (container,) = told["containers"]
    assert told["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert told["automountServiceAccountToken"] is False


def test_a_pod_sees_the_home_and_the_environment_of_the_run(cluster: Cluster, home: Path) -> None:
    metadata, spec = cluster.pod({})
    told = as_json(spec)
    mounts = {mount["mountPath"]: mount["name"] for mount in told["containers"][0]["volumeMounts"]}
    assert mounts == {str(home): "home", "/tmp": "tmp"}
    env = {entry["name"]: entry["value"] for entry in told["containers"][0]["env"]}
    assert {"MLOPS_HOME": str(home), "MLOPS_ENV": "test", **QUIET}.items() <= env.items()
    assert cluster.namespace == "training"
    assert metadata == {}


def test_what_the_platform_says_of_its_pods_goes_before_what_is_so_by_itself(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own place for temporary files is not mounted twice, which Kubernetes would refuse."""
    volumes = [{"name": name, "empty_dir": {}} for name in ("home", "scratch")]
    mounts = [{"name": "home", "mount_path": str(home)}, {"name": "scratch", "mount_path": "/tmp"}]
    own = {
        "container_config": {"security_context": {"read_only_root_filesystem": False}},
        "pod_spec_config": {"security_context": {"run_as_user": 10001}},
        "pod_template_spec_metadata": {"labels": {"reach.mlops/outside": "true"}},
    }
    besides = {"volumes": volumes, "volume_mounts": mounts, "run_k8s_config": own}
    monkeypatch.setenv(SETTINGS, str(configured(tmp_path, "http://127.0.0.1:1", home, **besides)))
    with dg.DagsterInstance.ephemeral() as instance:
        metadata, spec = Cluster.of(instance).pod({})
    told = as_json(spec)
    assert [mount["mountPath"] for mount in told["containers"][0]["volumeMounts"]].count("/tmp") == 1
    assert told["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is False
    assert told["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert told["securityContext"]["runAsNonRoot"] is True and told["securityContext"]["runAsUser"] == 10001
    assert metadata["labels"] == {"reach.mlops/outside": "true"}


def test_an_address_is_a_context_of_the_kubeconfig(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLOPS_COMPUTE_ADDRESS chooses it, and with it the namespace."""
    named = configured(tmp_path, "http://127.0.0.1:1", home)
    monkeypatch.setenv(SETTINGS, str(named))
    kubeconfig = tmp_path / "kubeconfig.yaml"
    told = yaml.safe_load(kubeconfig.read_text())
    other = {"cluster": "here", "user": "us", "namespace": "elsewhere"}
    kubeconfig.write_text(yaml.safe_dump(told | {"contexts": [*told["contexts"], {"name": "other", "context": other}]}))
    with dg.DagsterInstance.ephemeral() as instance:
        assert Cluster.of(instance).namespace == "mlops"
        chosen = Cluster.of(instance, address="other")
        assert (chosen.context, chosen.namespace) == ("other", "elsewhere")
        with pytest.raises(ClusterError, match=r"nowhere.*Expected object with name nowhere"):
            Cluster.of(instance, address="nowhere").reach()
