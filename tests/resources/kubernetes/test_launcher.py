"""A run's pod has what the assets in it declare: launched over the wire, held to the official schemas by the API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.api import create_execution_plan
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster_k8s.job import get_user_defined_k8s_config

from mlops_assets import ModelPipeline, Resources
from mlops_assets.links.candidate import candidate_asset
from resources.kubernetes.launcher import DeclaredRunLauncher
from resources.kubernetes.pods import CONFIG, RETRIES, op_tags
from tests.conftest import small_model
from tests.resources.kubernetes.api_server import Api

LARGE = Resources(
    cpus=4,
    memory_gb=16,
    gpus=1,
    spot=True,
    retries=3,
    node_selector={"pool": "gpu"},
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    service_account="trainer",
    image="registry.example/mlops-gpu:1",
)
Launched = Callable[..., dict[str, Any]]


@pytest.fixture
def launched(cluster: Api, tmp_path: Path) -> Iterator[Launched]:
    """Have the launcher start a run that trains those models; the Job that it made."""
    usual = {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "2", "memory": "8Gi"}}
    config = {
        "job_image": "registry.example/mlops:1.4.0",
        "service_account_name": "mlops-run",
        "instance_config_map": "dagster-instance",
        "job_namespace": "mlops",
        "load_incluster_config": False,
        "kubeconfig_file": str(tmp_path / "kubeconfig.yaml"),
        "run_k8s_config": {"container_config": {"resources": usual}},
    }
    launcher = {"module": DeclaredRunLauncher.__module__, "class": DeclaredRunLauncher.__name__, "config": config}
    reference = InstanceRef.from_dir(str(tmp_path), overrides={"run_launcher": launcher})
    with dg.DagsterInstance.from_ref(reference) as instance:

        def launch(*models: ModelPipeline, tags: dict[str, str] | None = None) -> dict[str, Any]:
            job = dg.Definitions(
                assets=[candidate_asset(model) for model in models],
                resources=dict.fromkeys(("lake", "mlflow", "compute"), dg.ResourceDefinition.none_resource()),
            ).resolve_implicit_global_asset_job_def()
            origin = RepositoryPythonOrigin("python", ModuleCodePointer("mlops_assets.definitions", "defs"))
            run = instance.create_run_for_job(
                job,
                create_execution_plan(job, tags={"dagster/partition": "2013-07-01"}),
                asset_selection=frozenset(job.asset_layer.executable_asset_keys),
                job_code_origin=JobPythonOrigin(job.name, origin),
                tags={"dagster/partition": "2013-07-01", **(tags or {})},
            )
            instance.run_launcher.launch_run(LaunchRunContext(run, None))
            launch.tags = instance.get_run_by_id(run.run_id).tags  # type: ignore[attr-defined, union-attr]
            return cluster.created[-1]

        yield launch


def work(job: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = job["spec"]["template"]["spec"]["containers"][0]
    return container


def test_a_runs_pod_has_what_its_model_declares(launched: Launched) -> None:
    job = launched(small_model().with_(resources=LARGE))
    spec, container = job["spec"]["template"]["spec"], work(job)
    assert container["resources"]["limits"] == {"cpu": "4000m", "memory": "16384Mi", "nvidia.com/gpu": "1"}
    assert container["resources"]["requests"] == {"cpu": "4000m", "memory": "16384Mi"}
    assert container["image"] == "registry.example/mlops-gpu:1"
    assert {"name": "OMP_NUM_THREADS", "value": "4"} in container["env"]
    assert spec["serviceAccountName"] == "trainer"
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    spot = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert "cloud.google.com/gke-spot" in {term["matchExpressions"][0]["key"] for term in spot}
    assert launched.tags["dagster/max_retries"] == "3"  # type: ignore[attr-defined]


def test_a_run_says_whose_it_is(launched: Launched) -> None:
    """So that what is left of it can be found: the platform, the run, the team, the asset."""
    labels = launched(small_model())["spec"]["template"]["metadata"]["labels"]
    assert labels["mlops/team"] == "flights"
    assert labels["mlops/asset"] == "flights.late_arrival.candidate"
    assert labels["mlops/platform"] and labels["dagster/run-id"]


def test_what_declares_nothing_has_what_every_run_has(launched: Launched) -> None:
    """Also where the training has a pod of its own, which then asks for the GPU; twice it would never come."""
    for model in (small_model(), small_model().with_(compute="kubernetes", resources=LARGE)):
        job = launched(model)
        assert work(job)["resources"]["limits"] == {"cpu": "2", "memory": "8Gi"}
        assert work(job)["image"] == "registry.example/mlops:1.4.0"
        assert "dagster/max_retries" not in launched.tags  # type: ignore[attr-defined]


def test_of_several_models_in_one_run_the_largest_counts(launched: Launched) -> None:
    """They are trained one after the other, in one pod."""
    cores, memory = Resources(cpus=8, memory_gb=2, retries=1), Resources(cpus=0.5, memory_gb=32, retries=2)
    one, other = (small_model().with_(name=name) for name in ("one", "other"))
    job = launched(one.with_(resources=cores), other.with_(resources=memory))
    assert work(job)["resources"]["limits"] == {"cpu": "8000m", "memory": "32768Mi"}
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["mlops/team"] == "flights" and "mlops/asset" not in labels
    assert launched.tags["dagster/max_retries"] == "2"  # type: ignore[attr-defined]


def test_what_a_person_puts_on_a_run_goes_before(launched: Launched) -> None:
    asked = {"container_config": {"resources": {"limits": {"memory": "64Gi"}, "requests": {"memory": "64Gi"}}}}
    tags = {CONFIG: json.dumps(asked), "dagster/max_retries": "0"}
    job = launched(small_model().with_(resources=LARGE), tags=tags)
    assert work(job)["resources"]["limits"] == {"cpu": "4000m", "memory": "64Gi", "nvidia.com/gpu": "1"}
    assert launched.tags["dagster/max_retries"] == "0"  # type: ignore[attr-defined]


def test_the_tags_of_a_step_are_such_as_dagster_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pod for each step, Dagster's own executor reads the same tag."""
    told = candidate_asset(small_model().with_(resources=LARGE)).op.tags
    assert told[RETRIES] == "3"
    config = get_user_defined_k8s_config({CONFIG: told[CONFIG]})
    assert config.container_config["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert op_tags("", Resources().document) == {}
    monkeypatch.setenv("MLOPS_COMPUTE", "kubernetes")
    assert op_tags("", LARGE.document) == {}
    assert op_tags("subprocess", LARGE.document)
