"""The endpoint under KServe is the endpoint: the same process, from none to many, a new one for a share at first."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest

from tests.deployment.applied import CHOICES, Manifest, Platform, gathered

# What KServe's custom resource (v1beta1) knows of a predictor, besides a pod's own fields.
PREDICTOR = {
    "minReplicas": int,
    "maxReplicas": int,
    "scaleMetric": str,
    "scaleTarget": int,
    "canaryTrafficPercent": int,
    "timeout": int,
    "labels": dict,
}


@pytest.fixture(scope="module")
def service() -> Manifest:
    (found,) = Platform(tuple(gathered(CHOICES["kserve"]))).of("InferenceService")
    return found


@pytest.fixture(scope="module")
def predictor(service: Manifest) -> dict[str, Any]:
    return dict(service["spec"]["predictor"])


def test_it_is_what_kserve_takes(service: Manifest, predictor: dict[str, Any]):
    """Its own fields by name and type; what is left is the specification of a pod, by the official schema."""
    assert (service["apiVersion"], set(service["spec"])) == ("serving.kserve.io/v1beta1", {"predictor"})
    for name, kind in PREDICTOR.items():
        assert isinstance(predictor[name], kind), name
    spec = {name: value for name, value in predictor.items() if name not in PREDICTOR}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "endpoint"}, "spec": spec}
    kubernetes_validate.validate(pod, "1.36", strict=True)


def test_it_scales_to_zero_and_gives_a_new_revision_a_share(service: Manifest, predictor: dict[str, Any]):
    """Both are Knative's, and so is the mode."""
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert predictor["minReplicas"] == 0 < predictor["maxReplicas"]
    assert 0 < predictor["canaryTrafficPercent"] < 100
    assert predictor["scaleMetric"] in ("cpu", "memory", "concurrency", "rps")


def test_it_is_the_same_process_as_elsewhere(predictor: dict[str, Any], whole: Platform):
    """The same words, settings, bounds and volumes as the Deployment; only the port is KServe's."""
    (ours,), (theirs,) = whole.pod("endpoint").containers, predictor["containers"]
    assert theirs["name"] == "kserve-container"
    assert [word.replace("8080", "3001") for word in theirs["args"]] == ours["args"]
    for same in ("image", "envFrom", "env", "resources", "securityContext", "volumeMounts"):
        assert theirs[same] == ours[same], same
    for same in ("volumes", "securityContext", "automountServiceAccountToken"):
        assert predictor[same] == whole.pod("endpoint").spec[same], same
    assert predictor["labels"] == whole.pod("endpoint").labels
    for probe in ("readinessProbe", "livenessProbe"):
        assert theirs[probe]["httpGet"]["path"] == ours[probe]["httpGet"]["path"]


def test_nothing_of_the_deployment_is_left(whole: Platform):
    """Two that scale the same pods would fight."""
    kserve = Platform(tuple(gathered(CHOICES["kserve"])))
    names = {(one["kind"], one["metadata"]["name"]) for one in kserve.manifests}
    assert not {(kind, "endpoint") for kind in ("Deployment", "HorizontalPodAutoscaler", "Service")} & names
    others = {(o["kind"], o["metadata"]["name"]) for o in whole.manifests if o["metadata"]["name"] != "endpoint"}
    assert others <= names
