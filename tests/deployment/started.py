"""Starts what a manifest says: its words, its environment, its files, its probes, on ports that are free here.

What a container may not write to is refused to the process too: a hook of Python's own says "read-only" wherever the
manifest mounts nothing that can be written to. Addresses of the cluster are those of this machine instead.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.deployment.applied import Manifest, Platform
from tests.resources.conftest import free_port

READ_ONLY = """
import errno, os, sys
ROOTS = tuple(os.environ["WRITABLE"].split(os.pathsep)) + ("/dev/", "/proc/")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "sqlite3.connect": (0,)}

def refuse(event, args):
    if event == "open":
        path, _, flags = args
        paths = (path,) if isinstance(flags, int) and flags & WRITES else ()
    else:
        paths = tuple(args[place] for place in CHANGES.get(event, ()))
    for path in paths:
        if isinstance(path, (str, bytes, os.PathLike)):
            where = os.path.abspath(os.fsdecode(path))
            if not where.startswith(ROOTS):
                raise OSError(errno.EROFS, "Read-only file system", where)

sys.addaudithook(refuse)
"""
READY_SECONDS = 280  # alone it takes thirty; the probes of the manifests give as much
HERE = Path(sys.executable).parent


@dataclass
class Machine:
    """Stands for the cluster: where each mounted path and each port lies here, and the Secret."""

    platform: Platform
    root: Path
    secret: Mapping[str, str]
    changes: Mapping[str, str] = field(default_factory=dict)  # of the environment
    ports: dict[int, int] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """A word or a file of the cluster's, as it is here."""
        for path in ("/etc/mlops", "/var/lib/mlops"):
            text = text.replace(path, f"{self.root}{path}")
        for name in ("code-server", "mlflow"):
            text = re.sub(rf"(host: |//){name}\b", r"\g<1>127.0.0.1", text)
        text = text.replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"\b(3000|3001|4000|5000)\b", lambda found: str(self.port(int(found[0]))), text)

    def port(self, there: int) -> int:
        return self.ports.setdefault(there, free_port())

    def mount(self, spec: Manifest, container: Manifest) -> list[str]:
        """Make the container's files, and return where it may write."""
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        writable = []
        for mount in container["volumeMounts"]:
            place = self.root / mount["mountPath"].lstrip("/")
            if config := volumes[mount["name"]].get("configMap"):
                self._write(place, self.platform.named("ConfigMap", config["name"])["data"])
            else:
                place.mkdir(parents=True, exist_ok=True)
                writable.append(str(place))
        return writable

    def _write(self, place: Path, files: Mapping[str, str]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (place / name).write_text(self.here(text))

    def environment(self, container: Manifest) -> dict[str, str]:
        """Exactly what the container is given, and what finds this project instead of the image's."""
        given: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            given |= self._source(source)
        for one in container["env"]:
            given[one["name"]] = self._value(one, given)
        return {name: self.changes.get(name, self.here(value)) for name, value in given.items()}

    def _source(self, source: Manifest) -> Mapping[str, str]:
        if "secretRef" in source:
            return self.secret
        data: Mapping[str, str] = self.platform.named("ConfigMap", source["configMapRef"]["name"])["data"]
        return data

    def _value(self, one: Manifest, given: Mapping[str, str]) -> str:
        if "value" in one:
            return re.sub(r"\$\((\w+)\)", lambda found: self.changes.get(found[1], given[found[1]]), one["value"])
        source = one["valueFrom"]
        return self.secret[source["secretKeyRef"]["key"]] if "secretKeyRef" in source else "mlops"


@dataclass
class Process:
    """A container that runs here."""

    machine: Machine
    container: Manifest
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        (port,) = self.container["ports"]
        return f"http://127.0.0.1:{self.machine.port(port['containerPort'])}"

    def passes(self, probe: str) -> bool:
        """Asked as the kubelet would."""
        assert self.process.poll() is None, f"it ended:\n{self.log.read_text()[-4000:]}"
        how = self.container[probe]
        if "httpGet" in how:
            return _status(self.url + how["httpGet"]["path"]) == 200
        if "grpc" in how:
            return _serving(self.machine.port(how["grpc"]["port"]), how["grpc"]["service"])
        name, *words = how["exec"]["command"]
        return subprocess.run([HERE / name, *words], env=self.env, capture_output=True, check=False).returncode == 0

    def becomes_ready(self) -> None:
        """Each probe passes, tried once a second; those that ask the same are asked once."""
        probes = ("startupProbe", "readinessProbe", "livenessProbe")
        asked = {str(self._question(probe)): probe for probe in probes if probe in self.container}
        deadline = time.monotonic() + READY_SECONDS
        for probe in asked.values():
            while not self.passes(probe):
                what = f"{self.container['name']}: {probe}"
                assert time.monotonic() < deadline, f"{what} did not pass:\n{self.log.read_text()[-4000:]}"
                time.sleep(1)

    def _question(self, probe: str) -> Any:
        return [self.container[probe].get(how) for how in ("httpGet", "grpc", "exec")]


@contextmanager
def started(machine: Machine, *names: str) -> Iterator[dict[str, Process]]:
    """The processes of some pods, at the same time, as in a cluster; all end when the block does."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_running(machine, name)) for name in names}


@contextmanager
def _running(machine: Machine, name: str) -> Iterator[Process]:
    pods = machine.platform.pod(name)
    (container,) = pods.containers
    writable = machine.mount(pods.spec, container)
    scratch = machine.root / "tmp" / name
    hooks = machine.root / "hooks"
    for directory in (scratch, hooks):
        directory.mkdir(parents=True, exist_ok=True)
    (hooks / "sitecustomize.py").write_text(READ_ONLY)
    env = {
        **{
            variable: value for variable, value in os.environ.items() if variable in ("PATH", "LANG", "LD_LIBRARY_PATH")
        },
        **machine.environment(container),
        **machine.changes,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": str(hooks),
        "PYTHONDONTWRITEBYTECODE": "1",
        "WRITABLE": os.pathsep.join([*writable, str(machine.root / "tmp")]),
    }
    log = machine.root / f"{name}.log"
    command, *words = [machine.here(word) for word in container["args"]]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [HERE / command, *words], env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield Process(machine, container, env, process, log)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """As a pod ends: asked first, then its whole group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=40)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it left nothing behind


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return 0


def _serving(port: int, service: str) -> bool:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer: Any = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=5
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
