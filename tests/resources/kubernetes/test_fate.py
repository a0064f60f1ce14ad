"""A pod's fate is told from what the API says of it, also where Kubernetes itself would say nothing for ever."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client import ApiClient, V1Pod

from resources.kubernetes.fate import CONTAINER_SECONDS, NODE_SECONDS, Fate, fate

RUNNING = {"running": {"startedAt": "2026-11-21T10:00:00Z"}}
READY = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]


def pod(state: dict[str, Any] | None = None, init: dict[str, Any] | None = None, **status: Any) -> V1Pod:
    """As the API answers: one container that works, in that state."""
    meta = status.pop("metadata", {})
    limits = {"limits": {"memory": "512Mi"}}
    spec = {
        "nodeName": "node-7",
        "restartPolicy": "Never",
        "containers": [{"name": "work", "image": "mlops:1", "resources": limits}],
    }
    if state:
        status["containerStatuses"] = [told("work", state)]
    if init:
        status["initContainerStatuses"] = [told("fetch", init)]
    body = {"metadata": {"name": "p", **meta}, "spec": spec, "status": {"phase": "Running", **status}}
    answer = SimpleNamespace(data=json.dumps(body))
    found: V1Pod = ApiClient().deserialize(answer, "V1Pod")
    return found


def told(name: str, state: dict[str, Any]) -> dict[str, Any]:
    ready = {"ready": "running" in state, "restartCount": 0}
    return {"name": name, "image": "mlops:1", "imageID": "", "state": state, **ready}


def ended(code: int, reason: str = "Error", **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, **more}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def test_a_pod_waits_runs_and_ends() -> None:
    unscheduled = condition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available: 3 Insufficient cpu.")
    assert fate(pod(phase="Pending", conditions=[unscheduled])) == Fate("waits", unscheduled["message"])
    assert fate(pod(waiting("ContainerCreating"), phase="Pending")) == Fate("waits", "ContainerCreating")
    assert fate(pod(phase="Pending")).step == "waits"
    assert fate(pod(RUNNING, conditions=READY)) == Fate("runs")
    assert fate(pod(ended(0, "Completed"), phase="Succeeded")) == Fate("ended")


def test_work_that_is_done_stays_done() -> None:
    """Whatever is done to the pod afterwards, and whatever still runs beside it."""
    deleted = {"deletionTimestamp": "2026-11-21T10:00:00Z"}
    assert fate(pod(ended(0, "Completed"), metadata=deleted)).step == "ended"
    assert fate(pod(ended(0, "Completed"), reason="Evicted", phase="Failed")).step == "ended"


LOST = {
    "deleted": (None, "its pod was deleted"),
    "being deleted": (pod(RUNNING, metadata={"deletionTimestamp": "2026-11-21T10:00:00Z"}), "its pod was deleted"),
    "evicted": (
        pod(ended(137), phase="Failed", reason="Evicted", message="The node was low on resource: memory."),
        "was evicted: The node was low on resource: memory",
    ),
    "out of memory": (
        pod(ended(137, "OOMKilled"), phase="Failed"),
        r"want of memory \(OOMKilled\): its limit is 512Mi",
    ),
    "preempted": (
        pod(ended(143), conditions=[condition("DisruptionTarget", "True", "PreemptionByScheduler", "by p2")]),
        r"taken off its node node-7 \(PreemptionByScheduler: by p2\)",
    ),
    "spot node taken": (
        pod(phase="Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown."),
        "with its node node-7 .*imminent node shutdown",
    ),
    "node lost": (pod(RUNNING, phase="Unknown", reason="NodeLost"), "with its node node-7"),
    "nobody knows": (pod(ended(137, "ContainerStatusUnknown"), phase="Failed"), "with its node node-7"),
    "too long": (pod(ended(137), phase="Failed", reason="DeadlineExceeded"), "ran longer than it may"),
    "exit code": (pod(ended(3), phase="Failed"), "ended with exit code 3"),
    "signal": (pod(ended(139), phase="Failed"), r"killed by SIGSEGV \(exit code 139\)"),
    "refused by its node": (pod(phase="Failed", reason="OutOfcpu", message="Node didn't have it"), "failed .*OutOfcpu"),
}


@pytest.mark.parametrize("name", LOST)
def test_work_that_is_lost_is_lost_at_once_and_says_why(name: str) -> None:
    seen, cause = LOST[name]
    lost = fate(seen)
    assert lost.loss and lost.loss.begun and lost.certain_after == 0
    assert re.search(cause, lost.loss.cause), lost.loss.cause
    assert lost.loss.fix


NEVER = {
    "no such image": (pod(waiting("ErrImagePull", "not found"), phase="Pending"), "ErrImagePull: not found"),
    "still none": (pod(waiting("ImagePullBackOff", "Back-off"), phase="Pending"), "ImagePullBackOff: Back-off"),
    "no secret": (pod(waiting("CreateContainerConfigError", 'no secret "s"'), phase="Pending"), 'no secret "s"'),
    "init has none": (
        pod(waiting("PodInitializing"), waiting("ErrImagePull", "x"), phase="Pending"),
        "'fetch'.*ErrImagePull: x",
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_what_cannot_begin_is_certain_after_a_moment(name: str) -> None:
    """The kubelet tries again: a registry's hiccup is over by then."""
    seen, cause = NEVER[name]
    found = fate(seen)
    assert found.step == "waits" and found.certain_after == CONTAINER_SECONDS
    assert found.loss and not found.loss.begun and re.search(cause, found.loss.cause)


@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (pod(waiting("InvalidImageName", 'couldn\'t parse "A B"'), phase="Pending"), "couldn't parse"),
        (pod(waiting("ErrImageNeverPull"), phase="Pending"), "ErrImageNeverPull"),
        (pod(waiting("PodInitializing"), ended(2), phase="Failed"), "init container 'fetch' ended with exit code 2"),
        (pod(ended(128, "StartError", message='exec: "pythn": not found'), phase="Failed"), "pythn"),
    ],
)
def test_what_can_never_begin_is_certain_at_once(seen: V1Pod, cause: str) -> None:
    found = fate(seen)
    assert found.loss and not found.loss.begun and found.certain_after == 0
    assert cause in found.loss.cause


def test_a_node_that_no_longer_answers_is_given_a_while() -> None:
    """Its controller says that the pod is not ready; of the containers it knows no better than before."""
    silent = fate(pod(RUNNING, conditions=[condition("Ready", "False"), condition("ContainersReady", "True")]))
    assert silent.step == "runs" and silent.loss and silent.certain_after == NODE_SECONDS
    assert "node-7" in silent.loss.cause
    beside = fate(pod(RUNNING, conditions=[condition("Ready", "False"), condition("ContainersReady", "False")]))
    assert beside == Fate("runs")  # a container beside it is not ready, which is nothing to us
