"""A worker of a Ray cluster: of the one that an address names, else of this machine's own, which lives for the work.

    (none)                 this machine's own cluster: loopback, a token of its own, no dashboard, ended afterwards
    host:6379, auto        a cluster that this machine is a node of
    http://host:8265       any cluster, by its job API: the code of this project is sent along
    kuberay:<namespace>    a cluster that the KubeRay operator starts for the work (see `_kuberay`)

The address is the resource's (MLOPS_COMPUTE_ADDRESS), else RAY_ADDRESS. MLOPS_HOME is at the same place on every
machine, and so is the project, but for the job API. Each work has a process of its own, which speaks Dagster Pipes
as every other worker does; work that hands out more of it finds Ray initialized there.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from resources.compute import NoWorkerError, Work, WorkerLostError
from resources.compute.subprocess import STARVED, answer, death, kills_for_memory
from resources.environment import home

OBJECT_STORE_BYTES = 256 << 20  # data goes by path: what a cluster of our own keeps in memory is little
REACHED_WITHIN = 5.0  # seconds
STARTS = 3  # Ray takes a machine that is too busy to start its agents in 15 seconds for a broken one
TAIL = 100_000  # letters of what a process wrote: its last words are among them
OURS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's word for "listen on the loopback alone"
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # accelerator="auto" finds the GPU that it finds without Ray
    "RAY_USAGE_STATS_ENABLED": "0",
}
GUARDS = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")


def run(work: Work) -> dict[str, Any]:
    work.asking  # noqa: B018 - refused before a cluster is started
    address = work.address or os.environ.get("RAY_ADDRESS", "")
    if address.partition(":")[0] == "kuberay":
        from resources.compute import _kuberay

        return _kuberay.run(work, address.partition(":")[2])
    if urlsplit(address).scheme in ("http", "https"):
        from resources.compute import _ray_jobs

        return _ray_jobs.run(work, address)
    with cluster(address, work):
        return _done(work, address)


def asked_of_ray(work: Work, prefix: str = "") -> dict[str, float]:
    """The declared resources in Ray's words; what is not declared is left to Ray (one CPU)."""
    gib = work.resources.get("memory_gb")
    wanted = {
        "num_cpus": work.resources.get("cpus"),
        "memory": int(gib * 2**30) if gib else None,
        "num_gpus": work.resources.get("gpus"),
    }
    return {f"{prefix}{name}": value for name, value in wanted.items() if value}


def place(work: Work, prefix: str = "") -> dict[str, Any]:
    """On which nodes of a cluster it is to be done: those with the labels of `node_selector`, as on Kubernetes."""
    labels = work.resources.get("node_selector")
    return {f"{prefix}label_selector": dict(labels)} if labels else {}


def reach(address: str, work: Work, port: int) -> None:
    """Raises NoWorkerError, in seconds, where nothing listens."""
    given = urlsplit(address if "//" in address else f"//{address}")
    try:
        socket.create_connection((given.hostname or "", given.port or port), REACHED_WITHIN).close()
    except (OSError, ValueError) as problem:
        raise unreachable(work, address, problem) from problem


def unreachable(work: Work, address: str, problem: Exception) -> NoWorkerError:
    return NoWorkerError.of(
        work.entrypoint,
        f"the Ray cluster at {address} cannot be reached ({problem})",
        "Start it, or give another address (MLOPS_COMPUTE_ADDRESS, RAY_ADDRESS); without one, one is started here.",
    )


def _unstarted(work: Work, problem: Exception) -> NoWorkerError:
    fix = "Run it again when the machine is less busy, or with compute='subprocess'."
    return NoWorkerError.of(work.entrypoint, f"Ray could not be started on this machine: {problem}", fix)


# -- the cluster


@dataclass
class _Connection:
    """This process's one connection to Ray: how many blocks use it, where it leads, what ends with the last, and what
    Ray was told by the environment when it was imported.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    address: str = ""
    ends: ExitStack = field(default_factory=ExitStack)
    told: Mapping[str, str] = field(default_factory=dict)


_connection = _Connection()


@contextmanager
def cluster(address: str, work: Work) -> Iterator[None]:
    """This process is connected to the cluster for the time of the block, also when several blocks overlap.

    A cluster of our own ends with the last block; one that this process was connected to before stays. Raises
    NoWorkerError, also where this process is connected to another: work must not run there unseen.
    """
    if address and address != "auto":
        reach(address, work, 6379)
    with _connection.lock:
        if not _connection.users:
            with ExitStack() as stack:
                stack.enter_context(_connected(address, work))
                _connection.ends, _connection.address = stack.pop_all(), address
        elif address != _connection.address:
            raise _elsewhere(_connection.address or "of this machine's own", address, work)
        _connection.users += 1
    try:
        yield
    finally:
        with _connection.lock:
            _connection.users -= 1
            if not _connection.users:
                _connection.ends.close()


@contextmanager
def _connected(address: str, work: Work) -> Iterator[None]:
    ray = _imported(address, work)
    if ray.is_initialized():  # by whoever asks, or by a Ray worker that this process is
        found = ray.get_runtime_context().gcs_address
        if address not in ("", "auto", found):
            raise _elsewhere(found, address, work)
        yield
        return
    with ExitStack() as stack, _signals_as_they_are():
        settings = {"address": address} if address else stack.enter_context(_new())
        for left in range(0 if address else STARTS - 1, -1, -1):
            try:
                ray.init(configure_logging=False, **settings)
                break
            except Exception as problem:  # Ray raises this class itself, besides a dozen others
                if not left:
                    raise (unreachable(work, address, problem) if address else _unstarted(work, problem)) from problem
        stack.callback(ray.shutdown)
        lives = stack.pop_all()
    with lives:
        yield


def _elsewhere(connected: str, address: str, work: Work) -> NoWorkerError:
    problem = f"this process is connected to the Ray cluster {connected}, not to {address or 'one of its own'}"
    return NoWorkerError.of(work.entrypoint, problem, "Have the work done in a run of its own.")


def _imported(address: str, work: Work) -> Any:
    """Ray; for a cluster of our own it reads what makes that one safe before, since it reads it once a process."""
    if not address and "ray" not in sys.modules:
        guarded = any(name in os.environ for name in GUARDS)
        _connection.told = OURS | ({} if guarded else {GUARDS[0]: secrets.token_hex(32)})
    if not address:  # the processes of a later cluster read it too
        os.environ.update({name: value for name, value in _connection.told.items() if name not in os.environ})
    try:
        import ray
    except ImportError as problem:
        fix = "Install it: uv pip install 'mlops-assets[ray]', here and on the cluster."
        raise NoWorkerError.of(work.entrypoint, f"Ray is not installed ({problem})", fix) from problem
    return ray


@contextmanager
def _new() -> Iterator[dict[str, Any]]:
    """How a cluster of this machine's own is started; what it wrote goes with it."""
    # Sockets lie there, whose paths may have about a hundred letters: too few for some MLOPS_HOME.
    with tempfile.TemporaryDirectory(prefix="mlops-ray-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        inside = str(Path(directory, "ray"))  # Ray lets everybody into its own directory, nobody into the one around it
        settings = {"_temp_dir": inside, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        yield {"address": "local", **settings}


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Ray takes SIGTERM when it starts; it is Dagster's, which ends the run by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# -- the work


def _done(work: Work, address: str) -> dict[str, Any]:
    import ray

    _refuse_what_fits_nowhere(work, address)
    messages = home() / "work" / "compute" / f"{secrets.token_hex(8)}.messages"
    messages.parent.mkdir(parents=True, exist_ok=True)
    starved = kills_for_memory()
    with dg.open_pipes_session(
        context=work.asking,
        context_injector=dg.PipesEnvContextInjector(),
        message_reader=dg.PipesFileMessageReader(str(messages)),
        extras=work.document,
    ) as session:
        runtime = {"env_vars": work.environment, **({"py_executable": work.python} if _another(work) else {})}
        asked = {**asked_of_ray(work), **(place(work) if address else {})}  # a cluster of our own is one machine
        errand = ray.remote(max_retries=0, max_calls=1, runtime_env=runtime, **asked)(_errand)
        task = errand.remote(dict(session.get_bootstrap_env_vars()))
        try:
            _await(work, task, session)
        except ray.exceptions.RayError as problem:
            lost: Exception | None = problem
        except BaseException:
            ray.cancel(task, force=True)  # the run was ended: so is its work
            raise
        else:
            lost = None
    if lost is not None:
        raise _loss(work, lost, session, kills_for_memory() > starved) from lost
    return answer(work, session.get_custom_messages())


def _another(work: Work) -> bool:
    return Path(work.python) != Path(sys.executable)


def _errand(asked: Mapping[str, str]) -> None:
    """What runs in Ray's worker."""
    import ray
    from dagster_pipes import PipesMappingParamsLoader

    from resources.compute import _worker

    _worker.serve(PipesMappingParamsLoader(asked), {"ray_worker": ray.get_runtime_context().get_worker_id()})


def _await(work: Work, task: Any, session: Any) -> None:
    """Until the task has ended; NoWorkerError where it found no place in time. Raises what Ray says of it."""
    import ray

    patience = time.monotonic() + work.resources.get("start_within_seconds", float("inf"))
    while not ray.wait([task], timeout=1.0)[0]:
        if not session.message_handler.received_opened_message and time.monotonic() > patience:
            problem = f"none of the cluster became free in time: {_free()}"
            raise NoWorkerError.of(work.entrypoint, problem, "Ask for less, or declare a longer start_within.")
    ray.get(task)


def _refuse_what_fits_nowhere(work: Work, address: str) -> None:
    """A cluster of our own never grows: what no machine of it can hold would wait for ever."""
    import ray

    wanted = {{"num_cpus": "CPU", "num_gpus": "GPU"}.get(name, name): much for name, much in asked_of_ray(work).items()}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not address and not any(all(node.get(name, 0) >= much for name, much in wanted.items()) for node in nodes):
        raise NoWorkerError.of(work.entrypoint, f"this machine has not {_told(wanted)}", f"It has {_told(nodes[0])}.")


def _free() -> str:
    import ray

    return f"free are {_told(ray.available_resources())} of {_told(ray.cluster_resources())}"


def _told(much: Mapping[str, float]) -> str:
    gib = {"memory": f"{much.get('memory', 0) / 2**30:.1f} GiB of memory"} if "memory" in much else {}
    units = {name: f"{much[name]:g} {name}" for name in ("CPU", "GPU") if name in much}
    return " and ".join({**units, **gib}.values()) or "nothing"


def _loss(work: Work, problem: Exception, session: Any, starved: bool) -> Exception:
    """A Ray error as ours: what became of the worker."""
    from ray import exceptions

    if isinstance(problem, exceptions.RuntimeEnvSetupError | exceptions.RayTaskError):
        return NoWorkerError.of(
            work.entrypoint, f"its worker could not begin: {problem}", "Install the project there as it is here."
        )
    if starved or isinstance(problem, exceptions.OutOfMemoryError):
        return WorkerLostError.of(work.entrypoint, *STARVED)
    if isinstance(problem, exceptions.TaskCancelledError):
        return WorkerLostError.of(work.entrypoint, "was cancelled", "Somebody did it in Ray; run it again.")
    if isinstance(problem, exceptions.WorkerCrashedError):
        return WorkerLostError.of(work.entrypoint, *_crash(session))
    said = str(problem).splitlines()[0]
    return WorkerLostError.of(work.entrypoint, f"was lost with its machine ({said})", "See the cluster; run it again.")


def _crash(session: Any) -> tuple[str, str]:
    """What a process that is gone died of, as far as it is known: the code or signal that it told, or its silence."""
    messages = [one for one in session.get_custom_messages() if isinstance(one, dict)]
    worker = next((one["ray_worker"] for one in messages if "ray_worker" in one), "")
    noted, output = _noted(worker)
    if code := re.search(r"exit code ([0-9]+)", noted):
        return death(int(code[1]))
    if fault := re.search(r"\*\*\* (SIG[A-Z]+) received", output):
        return death(-signal.Signals[fault[1]])
    what = "died without a word, as by SIGKILL or for want of its machine's memory"
    return f"{what} (Ray: {noted})", "Look at its output in the run's logs; run it again."


def _noted(worker: str, within: float = 3.0) -> tuple[str, str]:
    """Ray's note about the end of a process, and the end of what it wrote where that lies on this machine.

    Ray's public state API would need the dashboard.
    """
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    until = time.monotonic() + within
    while time.monotonic() < until:
        accessor = state._connect_and_get_accessor()  # noqa: SLF001
        table = map(gcs_pb2.WorkerTableData.FromString, accessor.get_worker_table())
        row = next((one for one in table if one.worker_address.worker_id.hex() == worker), None)
        if row is not None and not row.is_alive:
            written = next(_logs().glob(f"worker-{worker}-*.err"), None)
            output = written.read_text(errors="replace")[-TAIL:] if written else ""
            return str(row.exit_detail).split(" Some common causes")[0].rstrip("."), output
        time.sleep(0.1)
    return "nothing of it", ""


def _logs() -> Path:
    """Where the processes of this machine write, for the cluster that this one is connected to."""
    from ray._private import worker

    return Path(worker._global_node.get_logs_dir_path())  # noqa: SLF001
