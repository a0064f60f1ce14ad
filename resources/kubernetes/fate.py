"""What has become of a pod, told from what the API says of it: one pure function, `fate`.

Kubernetes has no one field for it. A pod that can never run is "Pending" for as long as it exists; one whose node is
gone stays "Running"; one that was taken away is not there. Each of these waits for ever unless somebody names it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

CONTAINER_SECONDS = 10.0  # the kubelet tries again what a container could not start with; a hiccup is over by then
NODE_SECONDS = 60.0  # a node may stop answering for a moment; Kubernetes itself gives it five minutes
SIGNALLED = 128

AT_ONCE = ("InvalidImageName", "ErrImageNeverPull")
IMAGE = (*AT_ONCE, "ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable")
START = (
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff"),
    *("PreCreateHookError", "PreStartHookError", "PostStartHookError"),
)
NODE_GONE = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity")

MORE_MEMORY = "Give it more (Resources(memory_gb=...)), or train on fewer rows (TimeSplit(window=...))."
LOOK = "Look at its output in the run's logs."
OTHER_MACHINE = "Run it again: what it wrote down it goes on from. Resources(retries=...) has that done by itself."
OTHER_IMAGE = "Name one that the cluster can pull: Resources(image=...), or the image of the run."
MAKE_IT = "Make in the namespace what is missing (a secret, a config map, a volume), or ask for something else."


@dataclass(frozen=True)
class Loss:
    """Why the work will not be done by this pod: what it did or what befell it, and what to do; had it `begun`?"""

    cause: str
    fix: str
    begun: bool = True


@dataclass(frozen=True)
class Fate:
    """Where a pod is: it waits (and why), it runs, it ended well; or a loss, for certain once it lasted so long."""

    step: Literal["waits", "runs", "ended"]
    why: str = ""
    loss: Loss | None = None
    certain_after: float = 0.0


def fate(pod: Any) -> Fate:
    """Of a `V1Pod`, None for one that is not there; the first of its containers does the work."""
    for told in (_ended, _gone, _failed_start, _unanswered, _running):
        if found := told(pod):
            return found
    return Fate("waits", _why(pod))


def _ended(pod: Any) -> Fate | None:
    """It did its work, whatever happens to the pod now; or memory ran out, which has one meaning."""
    done = _terminated(pod)
    if done is None:
        return None
    if done.exit_code == 0:
        return Fate("ended")
    if done.reason == "OOMKilled":
        return _lost("was killed for want of memory (OOMKilled)" + _limit(pod), MORE_MEMORY)
    return None


def _gone(pod: Any) -> Fate | None:
    """Taken away, with its node or alone; then what the container died of is not the cause."""
    if pod is None:
        return _lost("was lost: its pod was deleted", OTHER_MACHINE)
    status, reason = pod.status, pod.status.reason or ""
    if reason == "Evicted":
        return _lost(f"was evicted: {status.message or 'its node gave no reason'}", OTHER_MACHINE)
    if status.phase == "Unknown" or reason in NODE_GONE:
        return _lost(f"was lost with its node {_node(pod)}{_said(reason, status.message)}", OTHER_MACHINE)
    if disrupted := _condition(pod, "DisruptionTarget", "True"):
        why = _said(disrupted.reason, disrupted.message)
        return _lost(f"was taken off its node {_node(pod)}{why}", OTHER_MACHINE)
    if pod.metadata.deletion_timestamp:
        return _lost("was lost: its pod was deleted", OTHER_MACHINE)
    return _failed(pod)


def _failed(pod: Any) -> Fate | None:
    status, done = pod.status, _terminated(pod)
    if status.reason == "DeadlineExceeded":
        return _lost(f"ran longer than it may{_said('DeadlineExceeded', status.message)}", "Allow it more time.")
    if done and done.reason == "ContainerStatusUnknown":
        return _lost(f"was lost with its node {_node(pod)}{_said(done.reason, done.message)}", OTHER_MACHINE)
    if done and done.reason in ("StartError", "ContainerCannotRun"):
        return _never(f"its container could not start{_said(done.reason, done.message)}", OTHER_IMAGE)
    if done:
        return _lost(f"{_death(done.exit_code)}{_said(done.reason, done.message)}", LOOK)
    if status.phase == "Failed" and not any(_broken_inits(pod)):
        return _lost(f"failed{_said(status.reason, status.message)}", OTHER_MACHINE)
    return None


def _failed_start(pod: Any) -> Fate | None:
    """A container that cannot begin, an init container that failed: nothing after it ever begins."""
    for name, done in _broken_inits(pod):
        problem = f"its init container {name!r} {_death(done.exit_code)}{_said(done.reason, done.message)}"
        return _never(problem, MAKE_IT)
    for container in _containers(pod):
        waiting = container.state.waiting if container.state else None
        if waiting and waiting.reason in IMAGE + START:
            fix = OTHER_IMAGE if waiting.reason in IMAGE else MAKE_IT
            why = _said(waiting.reason, waiting.message)
            problem = f"container {container.name!r} ({container.image}) cannot start{why}"
            return _never(problem, fix, 0.0 if waiting.reason in AT_ONCE else CONTAINER_SECONDS)
    return None


def _unanswered(pod: Any) -> Fate | None:
    """The node's controller says of every pod of a node that is silent that it is not ready, of its containers not."""
    if _condition(pod, "Ready", "False") and _condition(pod, "ContainersReady", "True"):
        lost = Loss(f"was lost with its node {_node(pod)}, which no longer answers", OTHER_MACHINE)
        return Fate("runs", loss=lost, certain_after=NODE_SECONDS)
    return None


def _running(pod: Any) -> Fate | None:
    work = _work(pod)
    return Fate("runs") if work and work.state and work.state.running else None


def _why(pod: Any) -> str:
    """What the scheduler says, or what the container waits for."""
    if unscheduled := _condition(pod, "PodScheduled", "False"):
        return unscheduled.message or unscheduled.reason or "no node was found"
    waiting = [one.state.waiting for one in _containers(pod) if one.state and one.state.waiting]
    told = [f"{one.reason}: {one.message}" if one.message else one.reason for one in waiting if one.reason]
    return told[0] if told else "Kubernetes has not said why"


def _lost(cause: str, fix: str) -> Fate:
    return Fate("runs", loss=Loss(cause, fix))


def _never(problem: str, fix: str, certain_after: float = 0.0) -> Fate:
    return Fate("waits", problem, Loss(problem, fix, begun=False), certain_after)


def _containers(pod: Any) -> list[Any]:
    return [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]


def _work(pod: Any) -> Any:
    """The status of the container that does the work: the first of the pod's, whatever others were put beside it."""
    name = pod.spec.containers[0].name if pod else None
    return next((one for one in (pod.status.container_statuses or ()) if one.name == name), None) if pod else None


def _terminated(pod: Any) -> Any:
    work = _work(pod)
    return work.state.terminated if work and work.state else None


def _broken_inits(pod: Any) -> Iterator[tuple[str, Any]]:
    for one in pod.status.init_container_statuses or ():
        done = one.state.terminated if one.state else None
        if done and done.exit_code != 0 and pod.spec.restart_policy == "Never":
            yield one.name, done


def _condition(pod: Any, kind: str, status: str) -> Any:
    conditions: Iterable[Any] = pod.status.conditions or ()
    return next((one for one in conditions if one.type == kind and one.status == status), None)


def _node(pod: Any) -> str:
    return pod.spec.node_name or "(none)"


def _limit(pod: Any) -> str:
    resources = pod.spec.containers[0].resources
    limit = ((resources.limits if resources else None) or {}).get("memory")
    return f": its limit is {limit}" if limit else ""


def _death(code: int) -> str:
    if code <= SIGNALLED:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(code - SIGNALLED).name} (exit code {code})"
    except ValueError:
        return f"ended with exit code {code}"


def _said(reason: str | None, message: str | None) -> str:
    """Kubernetes' own words, after ours."""
    told = ": ".join(part for part in (reason, message) if part and part != "Error")
    return f" ({told})" if told else ""
