"""A standalone Spark cluster of this machine's: a master and workers of one core each, real processes on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def cluster(root: Path, workers: int = 2) -> Iterator[str]:
    """Its address, once every worker is there; its processes end with the block."""
    port, page = free_port(), free_port()
    address = f"spark://127.0.0.1:{port}"
    with ExitStack() as stack:
        stack.enter_context(_running(root, "master.Master", "-p", str(port), "--webui-port", str(page)))
        _await(lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True)
        for number in range(workers):
            own = ("--webui-port", "0", "-c", "1", "-m", "1g", "-d", str(root / f"worker-{number}"), address)
            stack.enter_context(_running(root, "worker.Worker", *own))
        _await(lambda: json.load(urlopen(f"http://127.0.0.1:{page}/json/"))["aliveworkers"] == workers)
        yield address


@contextmanager
def _running(root: Path, what: str, *options: str) -> Iterator[None]:
    import pyspark

    command = [str(Path(pyspark.__file__).parent / "bin" / "spark-class"), f"org.apache.spark.deploy.{what}"]
    own = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m", "SPARK_SCALA_VERSION": "2.13"}
    with (root / f"{what}.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1", *options], stdout=log, stderr=log, env={**os.environ, **own}
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def _await(there: object, seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            if there():  # type: ignore[operator]
                return
        except OSError:
            pass
        assert time.monotonic() < until
        time.sleep(0.2)
