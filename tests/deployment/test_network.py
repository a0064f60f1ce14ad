"""Exactly the connections that are needed: each is allowed at both ends, and no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.deployment.applied import Manifest, Platform

# Who asks whom, at which port. A run is a pod that the launcher makes.
NEEDED = {
    ("webserver", "code-server", 4000),
    ("daemon", "code-server", 4000),
    ("webserver", "postgres", 5432),
    ("daemon", "postgres", 5432),
    ("code-server", "postgres", 5432),
    ("run", "postgres", 5432),
    ("mlflow", "postgres", 5432),
    ("code-server", "redis", 6379),
    ("run", "redis", 6379),
    ("endpoint", "redis", 6379),
    ("code-server", "mlflow", 5000),
    ("run", "mlflow", 5000),
}
# The object store, the channels of alerts, and the API of Kubernetes.
OUTSIDE = {"webserver", "daemon", "code-server", "run", "mlflow"}
OWN_SERVERS = {"postgres", "redis"}


@pytest.fixture
def pods(platform: Platform, launcher: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    """Everybody's labels; a run has those that the launcher gives it, as Dagster's own."""
    run = launcher["run_k8s_config"]["pod_template_spec_metadata"]["labels"]
    own = {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/component": "run_worker"}
    return {**{pods.name: pods.labels for pods in platform.pods}, "run": {**run, **own}}


def test_nothing_is_open_by_itself(platform: Platform):
    """One policy that selects every pod and lets nothing through either way."""
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in [
        one["spec"] for one in platform.of("NetworkPolicy")
    ]


def test_exactly_what_is_needed_within(platform: Platform, pods: Mapping[str, Mapping[str, str]]):
    """The table above, for those that are there."""
    policies = [one["spec"] for one in platform.of("NetworkPolicy")]
    allowed = {
        (source, target, port)
        for source in pods
        for target in pods
        for port in _ports_to(policies, pods[source], pods[target])
        if _lets_in(policies, pods[source], pods[target], port)
    }
    assert allowed == {edge for edge in NEEDED if edge[0] in pods and edge[1] in pods}


def test_who_may_leave_the_cluster(platform: Platform, pods: Mapping[str, Mapping[str, str]]):
    """By TLS, and to no other port, but for servers of somebody else's."""
    policies = [one["spec"] for one in platform.of("NetworkPolicy")]
    leaving = {name: set(_ports_outside(policies, labels)) for name, labels in pods.items()}
    foreign = {"postgres": {5432}, "redis": {6379, 6380}}
    for name in pods:
        elsewhere = {
            port for server, ports in foreign.items() if server not in pods for port in ports if _needs(name, server)
        }
        assert leaving[name] == elsewhere | ({443, 6443} if name in OUTSIDE else set()), name


def test_who_may_come_in_from_elsewhere(platform: Platform, pods: Mapping[str, Mapping[str, str]]):
    """The pages and the endpoint, and only from namespaces that say so."""
    policies = [one["spec"] for one in platform.of("NetworkPolicy")]
    entered = {
        (name, label, port)
        for name, labels in pods.items()
        for policy in _selecting(policies, labels)
        for rule in policy.get("ingress", ())
        for peer in rule["from"]
        for label in peer.get("namespaceSelector", {}).get("matchLabels", ())
        for port in _numbers(rule)
    }
    pages = {("webserver", "access.mlops/pages", 3000), ("mlflow", "access.mlops/pages", 5000)}
    assert {entry for entry in entered if entry[0] != "endpoint"} == pages
    (listens,) = platform.pod("endpoint").containers[0]["ports"]
    at = (
        {listens["containerPort"]} if not platform.of("InferenceService") else {8012, 8013, 8112, 9090}
    )  # Knative's own
    assert {port for name, _, port in entered if name == "endpoint"} == at


def test_everybody_resolves_names_and_listens_where_the_policies_say(platform: Platform):
    """A policy for a port where nobody listens would be of no use, and hide that the right one is missing."""
    policies = platform.of("NetworkPolicy")
    everywhere = [one for one in policies if not one["spec"]["podSelector"] and one["spec"].get("egress")]
    assert [port for one in everywhere for rule in one["spec"]["egress"] for port in _numbers(rule)] == [53, 53]
    for pods in platform.pods:
        listens = {port["containerPort"] for container in pods.containers for port in container.get("ports", ())}
        opened = {port for one in _selecting([p["spec"] for p in policies], pods.labels) for port in _opened(one)}
        if pods.kind != "InferenceService":
            assert opened == listens, pods.name


def _needs(source: str, target: str) -> bool:
    return any(edge[:2] == (source, target) for edge in NEEDED)


def _selecting(policies: list[Manifest], labels: Mapping[str, str]) -> Iterator[Manifest]:
    return (one for one in policies if one["podSelector"].get("matchLabels", {}).items() <= labels.items())


def _ports_to(policies: list[Manifest], source: Mapping[str, str], target: Mapping[str, str]) -> set[int]:
    return {
        port
        for policy in _selecting(policies, source)
        for rule in policy.get("egress", ())
        if any(_is(peer, target) for peer in rule["to"])
        for port in _numbers(rule)
    }


def _lets_in(policies: list[Manifest], source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    return any(
        port in _numbers(rule) and any(_is(peer, source) for peer in rule["from"])
        for policy in _selecting(policies, target)
        for rule in policy.get("ingress", ())
    )


def _ports_outside(policies: list[Manifest], source: Mapping[str, str]) -> set[int]:
    return {
        port
        for policy in _selecting(policies, source)
        for rule in policy.get("egress", ())
        if any("ipBlock" in peer for peer in rule["to"])
        for port in _numbers(rule)
    }


def _opened(policy: Manifest) -> set[int]:
    return {port for rule in policy.get("ingress", ()) for port in _numbers(rule)}


def _is(peer: Manifest, labels: Mapping[str, str]) -> bool:
    """A pod of the same namespace that the peer names."""
    wanted = peer.get("podSelector", {}).get("matchLabels")
    return bool(wanted) and "namespaceSelector" not in peer and wanted.items() <= labels.items()


def _numbers(rule: Manifest) -> list[int]:
    return [port["port"] for port in rule["ports"]]
