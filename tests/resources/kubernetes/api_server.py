"""A Kubernetes API over HTTP for the tests: the routes that we use, answered as a cluster answers them.

Whatever is created is held to the official schemas of two versions first. Each pod then lives through a `Life`: a
function that sets its status as scheduler and kubelet would, in a thread. `works` is a kubelet in earnest: it starts
the container's command as a process, streams what it prints, and tells how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from resources.environment import PROJECT

VERSIONS = ("1.30", "1.37")
Json = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class RefusedError(Exception):
    """What the API answers instead: a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Pod:
    """One pod: its JSON, the log of its container, and the process where it has one."""

    body: Json
    log: list[bytes] = field(default_factory=list)
    grew: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False
    process: subprocess.Popen[bytes] | None = None
    death: Json = field(default_factory=dict)  # what is said of its container once its process has ended
    around: Json = field(default_factory=dict)  # and of the pod

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def container(self) -> Json:
        found: Json = self.body["spec"]["containers"][0]
        return found

    def is_(self, phase: str, state: Json | None = None, **status: Any) -> None:
        """Be in a phase; `state` is that of the container that works, the rest of the status as it is given."""
        told: Json = {"phase": phase, **status}
        if state is not None:
            told["containerStatuses"] = [self.told(self.container, state)]
            told["containerStatuses"] += [
                self.told(other, {"running": {"startedAt": now()}}) for other in self.body["spec"]["containers"][1:]
            ]
        self.body["status"] = told

    def init(self, state: Json, name: str = "fetch") -> None:
        """Be one whose init container is in that state."""
        self.body["spec"]["initContainers"] = [{"name": name, "image": "fetch:1"}]
        waits = {"waiting": {"reason": "PodInitializing"}}
        self.is_("Pending", waits, initContainerStatuses=[self.told({"name": name, "image": "fetch:1"}, state)])

    @staticmethod
    def told(container: Json, state: Json) -> Json:
        running = "running" in state
        return {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "",
            "state": state,
            "ready": running,
            "started": running,
            "restartCount": 0,
            "lastState": {},
        }

    def say(self, line: bytes) -> None:
        with self.grew:
            self.log.append(now().encode() + b" " + line.rstrip(b"\n") + b"\n")
            self.grew.notify_all()

    def hush(self) -> None:
        """Its log is complete."""
        with self.grew:
            self.closed = True
            self.grew.notify_all()

    def lines(self, follow: bool) -> Iterator[bytes]:
        at = 0
        while True:
            with self.grew:
                while follow and at == len(self.log) and not self.closed:
                    self.grew.wait(1)
                new, ended = self.log[at:], self.closed or not follow
            yield from new
            at += len(new)
            if ended and at == len(self.log):
                return


Life = Callable[["Api", Pod], None]


def works(api: Api, pod: Pod) -> None:
    """Scheduled, pulled, run as a process, ended as that ended."""
    pod.is_("Pending", {"waiting": {"reason": "ContainerCreating"}})
    told = {entry["name"]: entry.get("value", "") for entry in pod.container.get("env", [])}
    inherited = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        pod.container["command"],
        cwd=PROJECT,
        env=inherited | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    pod.process = process
    pod.is_("Running", {"running": {"startedAt": now()}})
    assert process.stdout
    for line in process.stdout:
        pod.say(line)
    code = process.wait()
    code = code if code >= 0 else 128 - code
    ended = {"exitCode": code, "reason": "Error" if code else "Completed", **pod.death}
    pod.is_("Failed" if code else "Succeeded", {"terminated": ended}, **pod.around)
    pod.hush()


def works_until(befalls: Life) -> Life:
    """A pod whose process works until, once it has said something, that befalls it."""

    def life(api: Api, pod: Pod) -> None:
        threading.Thread(target=works, args=[api, pod], daemon=True).start()
        while not pod.log:
            time.sleep(0.02)
        befalls(api, pod)

    return life


def runs_until(befalls: Life) -> Life:
    """The same of a pod without a process: what can be seen of it is the same."""

    def life(api: Api, pod: Pod) -> None:
        pod.is_("Running", {"running": {"startedAt": now()}})
        pod.say(b"training")
        time.sleep(0.3)
        befalls(api, pod)

    return life


def dies(death: Json | None = None, **around: Any) -> Life:
    """Its container ends by SIGKILL; this is said of it, and that of the pod."""

    def life(_api: Api, pod: Pod) -> None:
        pod.death, pod.around = death or {}, around
        if pod.process:
            pod.process.kill()
        else:
            pod.is_("Failed", {"terminated": {"exitCode": 137, "reason": "Error", **pod.death}}, **pod.around)
            pod.hush()

    return life


def stays(phase: str, state: Json | None = None, **status: Any) -> Life:
    """It comes to that, and no further."""
    return lambda _api, pod: pod.is_(phase, state, **status)


@dataclass
class Api:
    """The state of the cluster: what there is, what was asked, and how the next pods live."""

    pods: dict[tuple[str, str], Pod] = field(default_factory=dict)
    jobs: dict[tuple[str, str], Json] = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    lives: deque[Life] = field(default_factory=deque)
    refuses: dict[str, RefusedError] = field(default_factory=dict)  # by what the request's line holds: "POST /api"
    created: list[Json] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    keeps_deleted: bool = False  # a node that is gone never says that its pod has ended

    def create(self, namespace: str, kind: str, body: Json) -> Json:
        for version in VERSIONS:
            kubernetes_validate.validate(body, version, strict=True)
        name = body["metadata"]["name"]
        if (namespace, name) in (self.pods if kind == "pods" else self.jobs):
            raise RefusedError(409, f'{kind} "{name}" already exists')
        body["metadata"] |= {"namespace": namespace, "uid": str(uuid4()), "creationTimestamp": now()}
        self.created.append(json.loads(json.dumps(body)))
        if kind == "jobs":
            self.jobs[namespace, name] = body
            return body
        pod = Pod(body)
        pod.is_("Pending")
        self.pods[namespace, name] = pod
        life = self.lives.popleft() if self.lives else works
        threading.Thread(target=life, args=[self, pod], daemon=True).start()
        return body

    def pod(self, namespace: str, name: str) -> Pod:
        if (namespace, name) not in self.pods:
            raise RefusedError(404, f'pods "{name}" not found')
        return self.pods[namespace, name]

    def list(self, namespace: str, kind: str, selectors: Json) -> Json:
        if kind == "events":
            wanted = selectors.get("fieldSelector", "").removeprefix("involvedObject.name=")
            found = [event for event in self.events if event["involvedObject"]["name"] == wanted]
            return {"kind": "EventList", "apiVersion": "v1", "items": found}
        labels = dict(one.split("=") for one in selectors.get("labelSelector", "").split(",") if one)
        name = selectors.get("fieldSelector", "").removeprefix("metadata.name=")
        there = [pod.body for (where, _), pod in self.pods.items() if where == namespace]
        kept = [
            body
            for body in there
            if (not name or body["metadata"]["name"] == name)
            and labels.items() <= body["metadata"].get("labels", {}).items()
        ]
        return {"kind": "PodList", "apiVersion": "v1", "items": kept}

    def delete(self, namespace: str, name: str, options: Json) -> Json:
        """As the kubelet: SIGTERM, SIGKILL after the grace, and gone."""
        pod = self.pod(namespace, name)
        uid = (options.get("preconditions") or {}).get("uid")
        if uid and uid != pod.body["metadata"]["uid"]:
            raise RefusedError(409, "the UID in the precondition is not that of the object")
        pod.body["metadata"]["deletionTimestamp"] = now()
        if not self.keeps_deleted:
            threading.Thread(target=self.vanish, args=[namespace, pod], daemon=True).start()
        return pod.body

    def vanish(self, namespace: str, pod: Pod) -> None:
        """No longer there, nor its process."""
        if pod.process and pod.process.poll() is None:
            pod.process.send_signal(signal.SIGKILL)
            pod.process.wait()
        pod.hush()
        self.pods.pop((namespace, pod.name), None)

    def event(self, pod: Pod, reason: str, message: str) -> None:
        meta = {"name": f"{pod.name}.{len(self.events)}", "namespace": "mlops"}
        involved = {"kind": "Pod", "name": pod.name, "namespace": "mlops"}
        told = {"reason": reason, "message": message, "type": "Warning", "involvedObject": involved}
        self.events.append({"metadata": meta, "lastTimestamp": now(), **told})

    def end(self) -> None:
        for (namespace, _), pod in [*self.pods.items()]:
            self.vanish(namespace, pod)


POD = "/api/v1/namespaces/{namespace}/pods/{name}"
KINDS = {"pods": {"apiVersion": "v1", "kind": "Pod"}, "jobs": {"apiVersion": "batch/v1", "kind": "Job"}}


@dataclass(frozen=True)
class Routes:
    """The API's routes over that state."""

    api: Api

    def version(self, _: Request) -> Response:
        parts = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler", "platform")
        return JSONResponse({"major": "1", "minor": "37", "gitVersion": "v1.37.0"} | dict.fromkeys(parts, ""))

    async def create(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        body = KINDS[kind] | await request.json()
        return JSONResponse(self.api.create(request.path_params["namespace"], kind, body), 201)

    def several(self, request: Request) -> Response:
        where = request.path_params
        return JSONResponse(self.api.list(where["namespace"], where["kind"], dict(request.query_params)))

    def one(self, request: Request) -> Response:
        return JSONResponse(self.api.pod(**request.path_params).body)

    async def delete(self, request: Request) -> Response:
        return JSONResponse(self.api.delete(**request.path_params, options=json.loads(await request.body() or b"{}")))

    def log(self, request: Request) -> Response:
        pod, asked = self.api.pod(**request.path_params), request.query_params
        if "container" not in asked and len(pod.body["spec"]["containers"]) > 1:
            raise RefusedError(400, "a container name must be specified")
        if not pod.body["status"].get("containerStatuses", [{}])[0].get("started"):
            raise RefusedError(400, "container is waiting to start: PodInitializing")
        return StreamingResponse(pod.lines(asked.get("follow") == "True"), media_type="text/plain")

    async def guarded(self, request: Request, call_next: Any) -> Response:
        asked = f"{request.method} {request.url.path}"
        self.api.asked.append(asked)
        refusals = [refused for what, refused in self.api.refuses.items() if what in asked]
        answer: Response = _status(refusals[0]) if refusals else await call_next(request)
        return answer

    def app(self) -> Starlette:
        routes = [
            Route("/version/", self.version),
            Route("/api/v1/namespaces/{namespace}/{kind}", self.several, methods=["GET"]),
            Route("/api/v1/namespaces/{namespace}/{kind}", self.create, methods=["POST"]),
            Route("/apis/batch/v1/namespaces/{namespace}/{kind}", self.create, methods=["POST"]),
            Route(POD, self.one, methods=["GET"]),
            Route(POD, self.delete, methods=["DELETE"]),
            Route(f"{POD}/log", self.log, methods=["GET"]),
        ]
        handlers: Any = {RefusedError: _refused, kubernetes_validate.ValidationError: _invalid}
        served = Starlette(routes=routes, exception_handlers=handlers)
        served.add_middleware(BaseHTTPMiddleware, dispatch=self.guarded)
        return served


def _refused(_: Request, problem: Any) -> Response:
    return _status(problem)


def _invalid(_: Request, problem: Any) -> Response:
    return _status(RefusedError(422, f"{[*problem.path]}: {problem.message}"))


def _status(problem: RefusedError) -> Response:
    told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(problem)}
    return JSONResponse(told, problem.status)


@contextmanager
def serving() -> Iterator[tuple[Api, str]]:
    """A cluster without pods, and the address of its API."""
    api = Api()
    server = uvicorn.Server(uvicorn.Config(Routes(api).app(), port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield api, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        api.end()
        server.should_exit = server.force_exit = True
        thread.join(10)


def configured(folder: Path, address: str, home: Path, **besides: Any) -> Path:
    """A kubeconfig of that cluster, and the file of settings that names it."""
    one = {"name": "here", "cluster": {"server": address}}
    context = {"name": "here", "context": {"cluster": "here", "user": "us", "namespace": "mlops"}}
    config = {"clusters": [one], "contexts": [context], "users": [{"name": "us", "user": {}}]}
    kubeconfig, settings = folder / "kubeconfig.yaml", folder / "kubernetes.yaml"
    kubeconfig.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "here", **config}))
    volume = {"name": "home", "persistent_volume_claim": {"claim_name": "mlops-home"}}
    mounted = {"volumes": [volume], "volume_mounts": [{"name": "home", "mount_path": str(home)}]}
    told = {"image": "registry.example/mlops:1.4.0", "kubeconfig": str(kubeconfig), **mounted, **besides}
    settings.write_text(yaml.safe_dump(told))
    return settings
