"""The servers of the serving benchmark: how each is started, asked and read. All serve one file of one XGBoost model.

One worker and one thread each. Every peer gets the quicker of the ways in which it is commonly written, so that what
is measured against it is not flattered.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson

from benchmarks.wrk import Bodies

PROJECT = Path(__file__).resolve().parents[1]
START_SECONDS = 120
INSTALL_SECONDS = 600
ONE_THREAD = {"OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "true", "DO_NOT_TRACK": "1"}
Row = Sequence[Any]
Prepared = tuple[list[str], Mapping[str, str]]  # the argv and what is added to the environment


class ServerFailedError(RuntimeError):
    """A server ended, or did not answer in time."""

    @classmethod
    def of(cls, name: str, log: Path) -> ServerFailedError:
        return cls(f"{name} does not answer. It said: {log.read_text(errors='replace')[-2000:].strip() or 'nothing'}")


@dataclass(frozen=True)
class Contender:
    """A server: `prepare(port)` says how it is started, `body` writes a row, `read` finds what an answer predicts."""

    name: str
    path: str
    prepare: Callable[[int], Prepared]
    body: Callable[[Row], Any]
    read: Callable[[Any], list[float]]
    content_type: str = "application/json"


@dataclass(frozen=True)
class Running:
    """A contender that answers at `url`."""

    contender: Contender
    url: str
    pid: int
    rows: Sequence[Row] = field(repr=False)

    def ask(self, row: Row) -> float:
        """One prediction."""
        body = orjson.dumps(self.contender.body(row))
        answer = httpx.post(self.url, content=body, headers={"Content-Type": self.contender.content_type}, timeout=30)
        return self.contender.read(answer.raise_for_status().json())[0]

    def bodies(self, directory: Path) -> Bodies:
        written = [orjson.dumps(self.contender.body(row)) for row in self.rows]
        return Bodies.written(directory / self.contender.name.replace(" ", "_"), written)


@contextmanager
def started(contenders: Sequence[Contender], rows: Sequence[Row], logs: Path) -> Iterator[list[Running]]:
    """All of them at once, each answering; all have ended after the block."""
    with ExitStack() as stack:
        launched = [stack.enter_context(_launched(contender, rows, logs)) for contender in contenders]
        for running, process, log in launched:
            _wait(running, process, log)
        yield [running for running, _, _ in launched]


@contextmanager
def _launched(
    contender: Contender, rows: Sequence[Row], logs: Path
) -> Iterator[tuple[Running, subprocess.Popen[bytes], Path]]:
    port = free_port()
    argv, variables = contender.prepare(port)
    log = logs / f"{contender.name.replace(' ', '_')}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            env={**os.environ, **ONE_THREAD, **variables},
            cwd=PROJECT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield Running(contender, f"http://127.0.0.1:{port}{contender.path}", process.pid, rows), process, log
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it started, which are one session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _wait(running: Running, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            running.ask(running.rows[0])
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise ServerFailedError.of(running.contender.name, log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def fastapi(model: Path) -> Contender:
    """uvicorn with its quick loop and parser, and no access log."""
    return Contender(
        "bare FastAPI",
        "/predict",
        lambda port: (_uvicorn("benchmarks.servers.bare_fastapi:app", port), {"MODEL": str(model)}),
        named,
        lambda answer: [answer["prediction"]],
    )


def raw_asgi(onnx: Path) -> Contender:
    return Contender(
        "raw ASGI, ONNX Runtime",
        "/predict",
        lambda port: (_uvicorn("benchmarks.servers.raw_asgi:app", port), {"ONNX_MODEL": str(onnx)}),
        named,
        lambda answer: [answer["prediction"]],
    )


def default_bento(model: Path) -> Contender:
    argv = [sys.executable, "-m", "bentoml", "serve", "benchmarks.servers.default_bento:Default", "--host", "127.0.0.1"]
    return Contender(
        "default Bento",
        "/predict",
        lambda port: ([*argv, "--port", str(port)], {"MODEL": str(model)}),
        lambda row: {"data": [list(row)]},
        list,
    )


def mlflow(model: Path, directory: Path) -> Contender:
    """`mlflow models serve` in the environment as it is, of a model that MLflow saved itself; no access log either."""
    import mlflow.xgboost
    import xgboost as xgb

    mlflow.xgboost.save_model(xgb.Booster(model_file=model), directory)
    argv = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(directory), "--env-manager", "local"]
    variables = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "UVICORN_ACCESS_LOG": "false",
    }
    return Contender(
        "mlflow models serve",
        "/invocations",
        lambda port: ([*argv, "-w", "1", "-h", "127.0.0.1", "-p", str(port)], variables),
        lambda row: {"inputs": [list(row)]},
        lambda answer: list(answer["predictions"]),
    )


def mlserver(model: Path, directory: Path, environment: Path) -> Contender:
    """MLServer without its pool of inference processes, which costs a small model more than it gives."""
    directory.mkdir(parents=True)
    shutil.copy(model, directory / "model.ubj")
    described = {
        "name": "bench",
        "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": "./model.ubj"},
    }
    (directory / "model-settings.json").write_text(json.dumps(described))

    def prepare(port: int) -> Prepared:
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", **ports, "parallel_workers": 0, "debug": False}
        (directory / "settings.json").write_text(json.dumps(settings))
        return [str(environment / "bin" / "mlserver"), "start", str(directory)], {}

    def body(row: Row) -> dict[str, Any]:
        return {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": list(row)}]}

    return Contender(
        "MLServer", "/v2/models/bench/infer", prepare, body, lambda answer: list(answer["outputs"][0]["data"])
    )


def installed_mlserver(environment: Path) -> str | None:
    """Why MLServer is not in `environment`, made by uv on first use; None when it is."""
    if (environment / "bin" / "mlserver").exists():
        return None
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        return "there is no uv to make its environment with"
    steps = (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(environment)],
        [uv, "pip", "install", "--quiet", "--python", str(environment / "bin" / "python"), *MLSERVER],
    )
    for step in steps:
        ran = subprocess.run(step, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
        if ran.returncode:
            return f"it could not be installed: {ran.stderr.strip()[-500:]}"
    return None


MLSERVER = ("mlserver==1.7.1", "mlserver-xgboost==1.7.1")


def named(row: Row) -> dict[str, float]:
    """A row as an object of its ten inputs."""
    return {f"f{number}": value for number, value in enumerate(row)}


def _uvicorn(app: str, port: int) -> list[str]:
    return [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
