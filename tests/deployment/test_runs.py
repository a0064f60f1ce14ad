"""The Job of a run, as production's dagster.yaml has it: what Kubernetes takes, and all that the run needs.

The launcher asks a real API over the wire (of the tests' own, which holds what it is given to the official schemas).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher import DefaultRunLauncher, LaunchRunContext
from dagster._core.test_utils import instance_for_test

from resources.cluster_launcher import IN_CLUSTER
from tests.deployment.applied import Platform
from tests.deployment.started import HERE
from tests.resources.kubernetes.api_server import Api, configured, serving

IMAGE = "registry.example/mlops:1.4.0"
JOB = "platform__tracking_archive"


@pytest.fixture
def cluster(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Api, Path]]:
    """A cluster's API, a kubeconfig for it, and this process as if it were one of its pods."""
    with serving() as (api, address):
        configured(tmp_path, address, home)
        monkeypatch.setenv(IN_CLUSTER, "10.0.0.1")
        monkeypatch.setenv("MLOPS_NAMESPACE", "mlops")
        yield api, tmp_path / "kubeconfig.yaml"


@pytest.fixture
def overrides(launcher: dict[str, Any]) -> dict[str, Any]:
    """dagster.yaml's launcher; only the account's token, which a pod finds at a fixed place, is a kubeconfig here."""
    return {"module": "resources.cluster_launcher", "class": "ClusterRunLauncher", "config": launcher}


@pytest.fixture
def launched(
    cluster: tuple[Api, Path], overrides: dict[str, Any], tmp_path: Path
) -> Iterator[tuple[dg.DagsterInstance, str, dict[str, Any]]]:
    """A run that was launched, and its Job."""
    api, kubeconfig = cluster
    overrides["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    repository = ReconstructableRepository.for_module("mlops_assets.definitions", "defs", container_image=IMAGE)
    job = repository.get_reconstructable_job(JOB)
    with instance_for_test(overrides={"run_launcher": overrides}, temp_dir=str(tmp_path)) as instance:
        run = instance.create_run_for_job(job.get_definition(), job_code_origin=job.get_python_origin())
        instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        (created,) = api.created
        yield instance, run.run_id, created


def test_on_plain_servers_a_run_is_a_process(
    overrides: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing of the configuration is read there, not even the variables that it names."""
    monkeypatch.delenv(IN_CLUSTER, raising=False)
    monkeypatch.delenv("MLOPS_NAMESPACE", raising=False)
    with instance_for_test(overrides={"run_launcher": overrides}, temp_dir=str(tmp_path)) as instance:
        assert type(instance.run_launcher) is DefaultRunLauncher


def test_a_run_has_what_every_process_of_the_platform_has(launched, whole: Platform, secret: dict[str, str]):
    """The code server's image, settings, Secret, volume and rights; and a name by which it is found."""
    _, run_id, job = launched
    assert job["metadata"]["namespace"] == "mlops"
    pod, theirs = job["spec"]["template"]["spec"], whole.pod("code-server").spec
    (container,), (code_server,) = pod["containers"], theirs["containers"]
    assert container["image"] == IMAGE
    assert container["envFrom"] == code_server["envFrom"]
    given, wanted = ({one["mountPath"] for one in each["volumeMounts"]} for each in (container, code_server))
    assert given == wanted
    assert sorted(pod["volumes"], key=_name) == sorted(theirs["volumes"], key=_name)
    assert pod["securityContext"] == theirs["securityContext"]
    assert container["securityContext"] == code_server["securityContext"]
    assert pod["serviceAccountName"] == "mlops-run" and pod["restartPolicy"] == "Never"
    assert job["spec"]["template"]["metadata"]["labels"]["dagster/run-id"] == run_id
    assert {one["name"]: one.get("value") for one in container["env"]}["DAGSTER_HOME"] == "/etc/mlops/dagster"


def test_the_command_of_the_job_does_the_run(launched, home: Path):
    """Its words, as the container's entry point gets them, in a process of this machine."""
    instance, run_id, job = launched
    (container,) = job["spec"]["template"]["spec"]["containers"]
    command, *words = container["args"]
    done = subprocess.run([HERE / command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert instance.get_run_by_id(run_id).status is dg.DagsterRunStatus.SUCCESS


def test_what_a_network_policy_needs_is_on_the_pod(launched, launcher: dict[str, Any]):
    """Labels of ours, without which a run would reach nothing."""
    _, _, job = launched
    wanted = launcher["run_k8s_config"]["pod_template_spec_metadata"]["labels"]
    assert wanted.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert all(value == "true" for value in wanted.values()), yaml.safe_dump(wanted)


def _name(volume: dict[str, Any]) -> str:
    return str(volume["name"])
