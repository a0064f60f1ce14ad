"""Whatever is applied is what Kubernetes takes, refers to what exists, and gives nobody more than it needs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml

from mlops_assets.serving.process import WORKERS
from resources.environment import PROJECT, QUIET, SETTINGS
from resources.mlflow import SAFE
from tests.deployment.applied import CHOICES, KUBERNETES, Manifest, Platform, Pods

OLDEST, NEWEST = "1.30", "1.36"
NOT_OF_KUBERNETES = {"InferenceService"}
PINNED = re.compile(r"[\w./-]+:\d+(\.\d+)+[\w.-]*(@sha256:[0-9a-f]{64})?")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_is_what_kubernetes_takes(platform: Platform, version: str):
    """By the official schemas, strictly: a field that does not exist is refused, as the server would."""
    for manifest in platform.manifests:
        if manifest["kind"] not in NOT_OF_KUBERNETES:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_wrong_manifest_is_refused(whole: Platform):
    """The schemas do judge: a field of another name is no manifest."""
    wrong = {**whole.named("Service", "webserver"), "spec": {"selectors": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_makes_the_same_of_it(choice: str, platform: Platform):
    """What these tests gather is what `kubectl apply -k` is given, but for the image that is named in one place."""
    done = subprocess.run(["kubectl", "kustomize", CHOICES[choice]], capture_output=True, text=True, check=True)
    assert not done.stderr, "deprecated fields"
    rendered = [one for one in yaml.safe_load_all(done.stdout) if one]
    assert {_identity(one): _with_image(one) for one in rendered} == {_identity(one): one for one in platform.manifests}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_a_run_is_started_from_the_image_that_is_named_once(tmp_path):
    """Who names another image changes one line; the code server tells the launcher of it."""
    shutil.copytree(PROJECT / "deployment", tmp_path / "deployment")
    image = tmp_path / "deployment/kubernetes/components/image/kustomization.yaml"
    image.write_text(
        image.read_text().replace("newTag: 0.1.0", "newTag: 7.8.9").replace("registry.example", "elsewhere")
    )
    done = subprocess.run(
        ["kubectl", "kustomize", tmp_path / "deployment/kubernetes"], capture_output=True, text=True, check=True
    )
    rendered = Platform(tuple(yaml.safe_load_all(done.stdout)))
    ours = {c["image"] for pods in rendered.pods for c in pods.containers if pods.name not in ("postgres", "redis")}
    assert ours == {"elsewhere/mlops:7.8.9"}
    assert _env(rendered.pod("code-server").containers[0])["DAGSTER_CURRENT_IMAGE"] == {
        "value": "elsewhere/mlops:7.8.9"
    }


def test_the_image_that_runs_use_is_the_code_servers(platform: Platform):
    """In one place it is written twice."""
    (container,) = platform.pod("code-server").containers
    assert _env(container)["DAGSTER_CURRENT_IMAGE"]["value"] == container["image"]


# -- what no container may


def test_no_container_is_root_or_can_become_it(platform: Platform, launcher: dict[str, Any]):
    """The `restricted` standard of Kubernetes, which the namespace enforces, and a root directory nobody writes to."""
    run = launcher["run_k8s_config"]
    specs = [(pods.name, pods.spec, pods.containers) for pods in platform.pods]
    for name, spec, containers in [*specs, ("run", run["pod_spec_config"], [run["container_config"]])]:
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] > 0 and pod["runAsGroup"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for container in containers:
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"], name
            assert own["capabilities"] == {"drop": ["ALL"]} and not own.get("privileged"), name
    labels = platform.named("Namespace", "mlops")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_only_safe_volumes_are_mounted(platform: Platform):
    """No path of the node, which the namespace's standard refuses too."""
    kinds = {kind for pods in platform.pods for volume in pods.spec["volumes"] for kind in set(volume) - {"name"}}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}


def test_every_container_has_requests_and_limits(platform: Platform, launcher: dict[str, Any]):
    """One that takes all of a node's memory would take its neighbours with it."""
    run = launcher["run_k8s_config"]["container_config"]
    for container in [run, *(c for pods in platform.pods for c in pods.containers)]:
        for bound in ("requests", "limits"):
            assert set(container["resources"][bound]) == {"cpu", "memory"}, container.get("name", "run")


def test_every_container_is_probed(platform: Platform):
    """Alive and ready are asked, and a start is given its time: by itself, or by a first look that waits."""
    for pods in platform.pods:
        for container in pods.containers:
            assert "livenessProbe" in container, pods.name
            assert "startupProbe" in container or container["livenessProbe"].get("initialDelaySeconds"), pods.name
            assert "readinessProbe" in container or not container.get("ports"), pods.name


def test_probes_ask_where_the_container_listens(platform: Platform):
    for pods in platform.pods:
        for container in pods.containers:
            known = {port["name"]: port["containerPort"] for port in container.get("ports", ())}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                for how in ("httpGet", "grpc"):
                    if port := container.get(probe, {}).get(how, {}).get("port"):
                        assert port in known or port in known.values(), f"{pods.name}: {probe}"


def test_images_are_pinned(platform: Platform):
    """A tag that moves would make two pods of one Deployment different."""
    for pods in platform.pods:
        for container in pods.containers:
            assert PINNED.fullmatch(container["image"]), container["image"]


@pytest.mark.parametrize("tag", ["mlops", "mlops:latest", "postgres:16"])
def test_a_moving_tag_is_told_from_a_pinned_one(tag: str):
    assert not PINNED.fullmatch(tag)


# -- what is held up


def test_who_is_more_than_one_stays_so_while_nodes_are_emptied(platform: Platform):
    """Each Deployment of several pods has a budget for its pods, and each budget is somebody's."""
    several = {pods.name for pods in platform.pods if pods.kind == "Deployment" and _fewest(platform, pods) > 1}
    assert several >= {"webserver"}
    selected = {
        tuple(budget["spec"]["selector"]["matchLabels"].items()): budget["spec"]["minAvailable"]
        for budget in platform.of("PodDisruptionBudget")
    }
    assert set(selected) == {(("app.kubernetes.io/name", name),) for name in several}
    for (labels,), kept in selected.items():
        assert 0 < kept < _fewest(platform, platform.pod(labels[1])), "a node could never be emptied"


def test_the_daemon_is_never_two(platform: Platform):
    """Also while it is replaced."""
    daemon = platform.named("Deployment", "daemon")["spec"]
    assert daemon["replicas"] == 1 and daemon["strategy"] == {"type": "Recreate"}


def test_the_autoscaler_alone_says_how_many_endpoints(whole: Platform):
    """A number in the Deployment would undo the autoscaler's with every `kubectl apply`."""
    (scaler,) = whole.of("HorizontalPodAutoscaler")
    scaled = scaler["spec"]["scaleTargetRef"]
    assert "replicas" not in whole.named(scaled["kind"], scaled["name"])["spec"]
    assert 2 <= scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    assert scaler["spec"]["metrics"][0]["resource"]["name"] == "cpu"


def test_an_endpoint_is_given_its_time_to_end(whole: Platform):
    """Nobody may be sent there any more, then what is in flight is answered; before that it must not be killed."""
    from mlops_assets.serving.server.supervisor import GRACE_SECONDS

    spec = whole.pod("endpoint").spec
    (container,) = spec["containers"]
    _, waits = container["lifecycle"]["preStop"]["exec"]["command"]
    assert spec["terminationGracePeriodSeconds"] > float(waits) + GRACE_SECONDS


# -- what refers to what


def test_a_service_leads_to_a_port_that_is_there(platform: Platform):
    for service in platform.of("Service"):
        found = [pods for pods in platform.pods if service["spec"]["selector"].items() <= pods.labels.items()]
        assert [pods.name for pods in found] == [service["metadata"]["name"]]
        ports = {port["name"] for container in found[0].containers for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_selectors_select_their_own_pods(platform: Platform):
    for one in platform.of("Deployment", "StatefulSet"):
        wanted = one["spec"]["selector"]["matchLabels"]
        chosen = [pods.name for pods in platform.pods if wanted.items() <= pods.labels.items()]
        assert chosen == [one["metadata"]["name"]]


def test_what_is_referred_to_exists(platform: Platform, secret: dict[str, str], launcher: dict[str, Any]):
    """Config maps, the claim, the accounts: in the manifests. The Secret and its keys: in the example to copy."""
    maps = {one["metadata"]["name"] for one in platform.of("ConfigMap")}
    claims = {one["metadata"]["name"] for one in platform.of("PersistentVolumeClaim")}
    accounts = {one["metadata"]["name"] for one in platform.of("ServiceAccount")}
    secrets = {"mlops-secrets": set(secret)}
    for where, key, value in _references([*platform.manifests, {"kind": "dagster.yaml", "run": launcher}]):
        match key:
            case "configMapRef" | "configMap":
                assert value["name"] in maps, where
            case "persistentVolumeClaim":
                assert value["claimName"] in claims, where
            case "secretKeyRef":
                assert value["key"] in secrets[value["name"]], where
            case "secretRef":
                assert value["name"] in secrets, where
            case "serviceAccountName":
                assert value in accounts, where
    assert set(launcher["env_config_maps"]) <= maps and set(launcher["env_secrets"]) <= set(secrets)
    assert launcher["instance_config_map"] in maps and launcher["service_account_name"] in accounts


def test_every_mount_has_its_volume_and_every_volume_its_mount(platform: Platform, launcher: dict[str, Any]):
    for pods in platform.pods:
        claimed = [one["metadata"]["name"] for one in _claims(platform, pods)]
        volumes = [volume["name"] for volume in pods.spec["volumes"]] + claimed
        mounted = [mount["name"] for container in pods.containers for mount in container["volumeMounts"]]
        assert sorted(volumes) == sorted(mounted), pods.name
    assert [one["name"] for one in launcher["volumes"]] == [one["name"] for one in launcher["volume_mounts"]]


def test_every_process_knows_what_production_wants(platform: Platform, secret: dict[str, str]):
    """Whoever has the definitions or opens Dagster's instance has every address that environment.py asks for."""
    settings = platform.named("ConfigMap", "mlops-settings")["data"]
    wanted = {setting.variable for setting in SETTINGS}
    assert wanted <= {*settings, *secret}
    assert (
        settings["MLOPS_ENV"] == "production" and QUIET.items() <= settings.items() and SAFE.items() <= settings.items()
    )
    assert wanted <= _variables(platform, platform.pod("code-server"), secret)
    assert "MLOPS_POSTGRES_URL" in _variables(platform, platform.pod("webserver"), secret)
    assert "MLOPS_POSTGRES_URL" in _variables(platform, platform.pod("daemon"), secret)


def test_where_state_lies_is_where_the_volume_is(platform: Platform, launcher: dict[str, Any]):
    settings = platform.named("ConfigMap", "mlops-settings")["data"]
    homes = {
        mount["mountPath"]
        for pods in platform.pods
        for container in pods.containers
        for mount in container["volumeMounts"]
        if mount["name"] == "home"
    }
    assert homes == {settings["MLOPS_HOME"]} and settings["BENTOML_HOME"].startswith(settings["MLOPS_HOME"])
    paths = {one["name"]: one["mountPath"] for one in launcher["volume_mounts"]}
    assert paths["home"] == settings["MLOPS_HOME"]
    assert paths["instance"] == settings["DAGSTER_HOME"] == launcher["dagster_home"]


def test_no_secret_is_in_the_project_nor_given_to_who_needs_none(platform: Platform, secret: dict[str, str]):
    """No Secret is applied, the example holds placeholders only, and a process gets the keys that it uses."""
    assert not platform.of("Secret")
    for name, value in secret.items():
        assert "CHANGE-ME" in value, name
    given = {pods.name: _secrets_of(pods) for pods in platform.pods if pods.name != "code-server"}
    stores = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    expected = {
        "webserver": {"MLOPS_POSTGRES_URL", *stores},
        "daemon": {"MLOPS_POSTGRES_URL", *stores},
        "mlflow": {"MLOPS_MLFLOW_DATABASE", *stores},
        "endpoint": {"MLOPS_REDIS_URL"},
        "postgres": {"POSTGRES_PASSWORD"},
        "redis": {"REDIS_PASSWORD"},
    }
    assert given == {name: expected[name] for name in given}


# -- who may ask Kubernetes


def test_only_who_starts_pods_has_a_token(platform: Platform):
    """A token that nobody uses is only good for who breaks in."""
    holders = {pods.name for pods in platform.pods if pods.spec["automountServiceAccountToken"]}
    assert holders == {"webserver", "daemon", "code-server"}


def test_no_role_reaches_secrets_or_other_namespaces(platform: Platform):
    assert not platform.of("ClusterRole", "ClusterRoleBinding")
    allowed = {"jobs", "jobs/status", "pods", "pods/log", "pods/status", "events"}
    for role in platform.of("Role"):
        for rule in role["rules"]:
            assert set(rule["resources"]) <= allowed and "*" not in rule["verbs"]
    for binding in platform.of("RoleBinding"):
        platform.named(binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding["subjects"]:
            platform.named(subject["kind"], subject["name"])
            assert subject["namespace"] == "mlops"


def test_workers_is_a_word_of_ours(whole: Platform):
    """The endpoint's processes are named in its arguments, and so nowhere else."""
    (container,) = whole.pod("endpoint").containers
    assert container["args"][-2] == "--workers" and WORKERS not in _env(container)


def test_the_folders_hold_nothing_that_is_not_used():
    """A manifest that no kustomization names would be edited, and change nothing."""
    used = {path for folder in CHOICES.values() for path in _files(folder)}
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} - used == {KUBERNETES / "secret.example.env"}


def _files(folder) -> Iterator[Any]:
    kustomization = folder / "kustomization.yaml"
    said = yaml.safe_load(kustomization.read_text())
    yield kustomization
    for place in [*said.get("resources", ()), *said.get("components", ())]:
        path = (folder / place).resolve()
        yield from _files(path) if path.is_dir() else [path]
    for made in said.get("configMapGenerator", ()):
        yield from (folder / name for name in [*made.get("files", ()), *made.get("envs", ())])


def _identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _with_image(manifest: Manifest) -> Manifest:
    return yaml.safe_load(yaml.safe_dump(manifest).replace("registry.example/mlops:", "mlops:"))


def _fewest(platform: Platform, pods: Pods) -> int:
    for scaler in platform.of("HorizontalPodAutoscaler"):
        if scaler["spec"]["scaleTargetRef"]["name"] == pods.name:
            return int(scaler["spec"]["minReplicas"])
    return pods.replicas


def _claims(platform: Platform, pods: Pods) -> list[Manifest]:
    if pods.kind != "StatefulSet":
        return []
    return list(platform.named(pods.kind, pods.name)["spec"]["volumeClaimTemplates"])


def _references(node: Any, where: str = "") -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        where = f"{where}/{node.get('kind', '')}{node.get('name', '')}"
        for key, value in node.items():
            yield where, key, value
            yield from _references(value, f"{where}/{key}")
    elif isinstance(node, list):
        for one in node:
            yield from _references(one, where)


def _env(container: Manifest) -> dict[str, Any]:
    return {one["name"]: {key: value for key, value in one.items() if key != "name"} for one in container["env"]}


def _secrets_of(pods: Pods) -> set[str]:
    return {
        value["valueFrom"]["secretKeyRef"]["key"]
        for container in pods.containers
        for value in _env(container).values()
        if "secretKeyRef" in value.get("valueFrom", {})
    }


def _variables(platform: Platform, pods: Pods, secret: dict[str, str]) -> set[str]:
    (container,) = pods.containers
    found = set(_env(container))
    for source in container["envFrom"]:
        found |= set(
            platform.named("ConfigMap", source["configMapRef"]["name"])["data"] if "configMapRef" in source else secret
        )
    return found
