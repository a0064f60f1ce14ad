"""A RayJob is what the KubeRay operator takes, of pods that Kubernetes takes, as secure as those of the other kind.

`rayjob.schema.json` is the operator's own (helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of ray-project/kuberay
at feaeaf72facab4881ba2b179248bb67315634e229), without descriptions, status and pod templates, and closed: a field that
it does not know is an error here, where a cluster would drop it unseen.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from mlops_assets import Resources
from mlops_assets.declarations import DeclarationError
from resources.compute._kuberay import ray_job
from resources.kubernetes.cluster import SETTINGS, Cluster

SCHEMA = json.loads(Path(__file__).with_name("rayjob.schema.json").read_text())
LARGE = Resources(
    cpus=4, memory_gb=16, gpus=1, machines=3, spot=True, service_account="trainer", start_within=timedelta(minutes=5)
)


@pytest.fixture
def cluster(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    told = {
        "image": "registry.example/mlops:1.0",
        "namespace": "mlops",
        "volumes": [{"name": "home", "persistent_volume_claim": {"claim_name": "mlops-home"}}],
        "volume_mounts": [{"name": "home", "mount_path": str(home)}],
    }
    path = tmp_path / "kubernetes.yaml"
    path.write_text(yaml.safe_dump(told))
    monkeypatch.setenv(SETTINGS, str(path))
    with dg.DagsterInstance.ephemeral() as instance:
        return Cluster.of(instance)


def job(cluster: Cluster, resources: Resources) -> dict[str, Any]:
    return ray_job(cluster, resources.document, "flights-late-arrival", "mlops")


@pytest.mark.parametrize("resources", [Resources(), LARGE], ids=["nothing", "much"])
def test_the_operator_takes_what_is_written(cluster: Cluster, resources: Resources) -> None:
    """The RayJob by the operator's schema; its pods by Kubernetes' own, of two versions."""
    made = job(cluster, resources)
    jsonschema.validate(made, SCHEMA)
    rays = made["spec"]["rayClusterSpec"]
    for group in (rays["headGroupSpec"], *rays["workerGroupSpecs"]):
        template = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "any"},
            "template": group["template"],
        }
        for version in ("1.33", "1.35"):
            kubernetes_validate.validate(template, version, strict=True)


def test_a_field_that_the_operator_does_not_know_is_found(cluster: Cluster) -> None:
    """Else the test above could not fail."""
    made = job(cluster, Resources())
    made["spec"]["entryPoint"] = "python"
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        jsonschema.validate(made, SCHEMA)


def test_each_pod_has_what_is_declared_and_no_right_besides(cluster: Cluster) -> None:
    made = job(cluster, LARGE)["spec"]
    head, (workers,) = made["rayClusterSpec"]["headGroupSpec"], made["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    assert made["preRunningDeadlineSeconds"] == 300
    for group in (head, workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == {"cpu": "4000m", "memory": "16384Mi", "nvidia.com/gpu": "1"}
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["serviceAccountName"] == "trainer"
        assert pod["volumes"][-1]["persistentVolumeClaim"]["claimName"] == "mlops-home"
        assert any(one["key"] == "cloud.google.com/gke-spot" for one in pod["tolerations"])


def test_one_machine_needs_no_workers(cluster: Cluster) -> None:
    assert job(cluster, Resources())["spec"]["rayClusterSpec"]["workerGroupSpecs"] == []
    with pytest.raises(DeclarationError, match="machines"):
        Resources(machines=0)


@pytest.mark.usefixtures("cluster")
def test_the_command_writes_the_same(cluster: Cluster) -> None:
    """`mlops compute manifest` shows what would be created."""
    from mlops_assets.cli import app

    done = CliRunner().invoke(app, ["compute", "manifest", "flights/late_arrival"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.output) == job(cluster, Resources())
