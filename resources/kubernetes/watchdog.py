"""Dagster's Pipes client for Kubernetes, under a watch that ends.

By itself the client waits for ever for a pod that was deleted, that no node has room for, whose image does not exist or
whose node is gone: it looks for a container that ends, and none does. Here a pod is read every second, its fate is told
(see `fate`), and what cannot end well is an error within seconds, with its cause. The pod is deleted whatever happened,
and has gone before the work is begun again: two would write to one place.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import kubernetes
from dagster import AssetExecutionContext, OpExecutionContext
from dagster_k8s import PipesK8sClient
from dagster_k8s.client import DagsterKubernetesClient
from dagster_k8s.pipes import PipesK8sPodLogsMessageReader
from urllib3.exceptions import HTTPError

from resources.kubernetes.cluster import SECONDS, Cluster, ClusterError, refusal, told
from resources.kubernetes.fate import Fate, Loss, fate

Context = OpExecutionContext | AssetExecutionContext

POLL_SECONDS = 1.0
API_SECONDS = 60.0  # an API server is away for so long while it is replaced
LOG_SECONDS = 90.0  # for the last lines of a container that ended: longer than a stream that fell silent is waited for
WORDS_SECONDS = 5.0  # for the last words of one that was lost
GRACE_SECONDS = 5  # between SIGTERM and SIGKILL
GONE_SECONDS = 30.0  # a node that is gone never says that its pod is
MISSING, TROUBLE = 404, 500
PASSING = (401, 429)  # some clusters refuse a token for a moment, or say that they are asked too much
ROUTINE = ("Killing", "Pulled", "Pulling", "Created", "Started", "Scheduled", "SuccessfulAttachVolume")
# Routers drop a stream that is silent without telling anybody; Dagster asks anew after this, and repeats no line.
os.environ.setdefault("DAGSTER_PIPES_K8S_CONSUME_POD_LOGS_REQUEST_TIMEOUT", "60")

logger = logging.getLogger(__name__)


class PodLostError(RuntimeError):
    """A pod will not do its work; `loss` says why."""

    def __init__(self, pod: str, loss: Loss) -> None:
        super().__init__(pod, loss)
        self.pod, self.loss = pod, loss


@dataclass(frozen=True)
class Pod:
    """One pod of the cluster, asked of it anew each time."""

    core: Any
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def read(self) -> Any:
        """None where it is gone. Raises ClusterError where it may not be read, HTTPError where nobody answers."""
        try:
            return self.core.read_namespaced_pod(self.name, self.namespace, _request_timeout=SECONDS)
        except kubernetes.client.ApiException as problem:
            if problem.status == MISSING:
                return None
            if problem.status >= TROUBLE or problem.status in PASSING:
                raise HTTPError(refusal(problem)) from problem
            with told(f"pod {self}"):
                raise

    def events(self) -> list[str]:
        """What befell it, oldest first, in the cluster's words; nothing where they may not be read."""
        asked = f"involvedObject.name={self.name}"
        try:
            found = self.core.list_namespaced_event(self.namespace, field_selector=asked, _request_timeout=SECONDS)
        except (kubernetes.client.ApiException, HTTPError) as problem:
            logger.info("The events of pod %s cannot be read: %s", self, problem)
            return []
        return [f"{one.reason}: {one.message}" for one in found.items if one.reason not in ROUTINE]

    def delete(self) -> None:
        """Have it go; one that is gone already is as good. One that cannot be deleted is left to the reaper."""
        try:
            self.core.delete_namespaced_pod(
                self.name, self.namespace, grace_period_seconds=GRACE_SECONDS, _request_timeout=SECONDS
            )
        except (kubernetes.client.ApiException, HTTPError) as problem:
            if getattr(problem, "status", None) != MISSING:
                logger.warning("Pod %s could not be deleted, and is left to the sensor of orphans: %s", self, problem)

    def wait_until_gone(self) -> None:
        until = time.monotonic() + GONE_SECONDS
        while time.monotonic() < until:
            try:
                if self.read() is None:
                    return
            except (HTTPError, ClusterError) as problem:
                logger.info("Whether pod %s is gone cannot be asked: %s", self, problem)
            time.sleep(POLL_SECONDS)


@dataclass
class Watch:
    """Looks at a pod until it has done its work; PodLostError as soon as it is certain that it will not."""

    pod: Pod
    start_within: float
    context: Context
    begun: float = field(default_factory=time.monotonic)
    answered: float = field(default_factory=time.monotonic)
    doubtful: float | None = None  # since when there is a loss that may pass
    said: str = ""

    def steps(self) -> Iterator[Fate]:
        """Its fate, again and again, the last one ended."""
        while True:
            now = time.monotonic()
            if (seen := self._look(now)) is not None:
                self._judge(seen, now)
                self._tell(seen)
                yield seen
                if seen.step == "ended":
                    return
            time.sleep(POLL_SECONDS)

    def _look(self, now: float) -> Fate | None:
        """None while nobody answers."""
        try:
            seen = fate(self.pod.read())
        except HTTPError as problem:
            if now - self.answered < API_SECONDS:
                return None
            cause = f"can no longer be watched: the API server has not answered for {API_SECONDS:.0f} s ({problem})"
            raise self._lost(Loss(cause, "Look whether the cluster is up, then run it again.")) from problem
        self.answered = now
        return seen

    def _judge(self, seen: Fate, now: float) -> None:
        if seen.loss is None:
            self.doubtful = None
        else:
            self.doubtful = now if self.doubtful is None else self.doubtful
            if now - self.doubtful >= seen.certain_after:
                raise self._lost(seen.loss)
        if seen.step == "waits" and now - self.begun > self.start_within:
            raise self._lost(self._late(seen))

    def _late(self, seen: Fate) -> Loss:
        return Loss(
            f"its pod has not begun within {self.start_within:.0f} s: {seen.why}",
            "Ask for less, or for another machine (Resources), or wait longer (Resources(start_within=...)).",
            begun=False,
        )

    def _lost(self, loss: Loss) -> PodLostError:
        """With what befell the pod last."""
        events = self.pod.events()
        last = f" [{events[-1]}]" if events and events[-1].partition(": ")[2] not in loss.cause else ""
        return PodLostError(str(self.pod), replace(loss, cause=loss.cause + last))

    def _tell(self, seen: Fate) -> None:
        """Each change, once, in the run's log."""
        why = seen.loss.cause if seen.loss else seen.why
        said = f"{seen.step}: {why}" if why else seen.step
        if said != self.said:
            self.context.log.info("Pod %s %s", self.pod, said)
        self.said = said


@dataclass(frozen=True)
class _One:
    """The logs of one container: by itself the API refuses to choose where others were put beside it."""

    core: Any
    container: str

    def read_namespaced_pod_log(self, name: str, namespace: str, **asked: Any) -> Any:
        return self.core.read_namespaced_pod_log(name, namespace, container=self.container, **asked)


class WatchedPipesK8sClient(PipesK8sClient):
    """`PipesK8sClient`, whose `run` also raises PodLostError; it deletes the pod itself."""

    def __init__(self, cluster: Cluster, start_within: float) -> None:
        super().__init__(kubeconfig_file=cluster.kubeconfig, kube_context=cluster.context, poll_interval=POLL_SECONDS)
        self._start_within = start_within

    @contextmanager
    def consume_pod_logs(
        self,
        context: Context,
        client: DagsterKubernetesClient,
        namespace: str,
        pod_name: str,
        enable_multi_container_logs: bool = False,  # noqa: ARG002  Dagster's own signature
        ignore_containers: set[str] | None = None,  # noqa: ARG002
    ) -> Iterator[None]:
        """Hand on what the work says until it has ended; what Dagster then waits for has come."""
        pod = Pod(client.core_api, namespace, pod_name)
        # It has ended then; Dagster would ask once more, and wait for ever for one that somebody removed meanwhile.
        client.wait_for_pod = _seen  # type: ignore[method-assign]
        try:
            self._follow(pod, context)
            yield
        except PodLostError:
            pod.delete()
            pod.wait_until_gone()
            raise
        finally:
            pod.delete()

    def _follow(self, pod: Pod, context: Context) -> None:
        reading: _Reading | None = None
        try:
            for seen in Watch(pod, self._start_within, context).steps():
                if reading is None and seen.step != "waits":
                    reading = _Reading.begin(self.message_reader, context, pod)
        except PodLostError:
            if reading:
                reading.join(WORDS_SECONDS)
            raise
        if reading and not reading.finished():
            context.log.warning("The log of pod %s could not be read to its end: %s", pod, reading.problem)


class _Reading(threading.Thread):
    """Follows the log of a pod's work beside the watch: its stream may never end where the pod is lost."""

    def __init__(self, reader: PipesK8sPodLogsMessageReader, context: Context, pod: Pod) -> None:
        super().__init__(name=f"log-{pod.name}", daemon=True)
        self._reader, self._context, self._pod = reader, context, pod
        self.problem: Exception | str = f"it did not end within {LOG_SECONDS:.0f} s"

    @classmethod
    def begin(cls, reader: Any, context: Context, pod: Pod) -> Self:
        reading = cls(reader, context, pod)
        reading.start()
        return reading

    def run(self) -> None:
        try:
            container = self._pod.read().spec.containers[0].name
            logs: Any = _One(self._pod.core, container)
            self._reader.consume_pod_logs(self._context, logs, self._pod.name, self._pod.namespace)
            self.problem = ""
        except Exception as problem:  # noqa: BLE001  told by who waits; here nobody would hear of it
            self.problem = problem

    def finished(self) -> bool:
        """Whether all of it was read."""
        self.join(LOG_SECONDS)
        return not self.problem


def _seen(*_: Any, **__: Any) -> None:
    """Nothing is left to wait for."""
