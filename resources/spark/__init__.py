"""Spark: one session a process, on this machine's cores or on a cluster, for tables that one machine cannot hold.

`MLOPS_SPARK_MASTER` names the cluster (`spark://host:7077`); without it Spark runs in this process, on `local[*]`. What
is not said here is Spark's own `spark-defaults.conf`, under `SPARK_CONF_DIR`. Nothing is opened to the network: no UI,
and on this machine every port is bound to loopback. Times are UTC microseconds, as everywhere in the lake.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from resources.environment import PROJECT

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MASTER, LOCAL = "MLOPS_SPARK_MASTER", "local[*]"
JAVA = 17  # the oldest that Spark 4 runs on
REACH_SECONDS = 5.0


class SparkUnavailableError(RuntimeError):
    """Spark cannot be started on this machine."""

    @classmethod
    def of(cls, found: str) -> Self:
        return cls(
            f"Spark needs Java {JAVA} or later and the pyspark package; {found}. Install a Java runtime (Debian: "
            "apt-get install default-jre-headless), name it by JAVA_HOME, and install mlops-assets[spark]."
        )


class ClusterUnreachableError(ConnectionError):
    """Nothing answers where a Spark cluster should be."""

    @classmethod
    def of(cls, master: str, reason: object) -> Self:
        return cls(
            f"No Spark master answers at {master} ({reason}). "
            f"Start it, correct {MASTER}, or unset it to run on {LOCAL}."
        )


class OtherMasterError(RuntimeError):
    """A process has a session on one cluster and was asked for another."""

    @classmethod
    def of(cls, running: str, asked: str) -> Self:
        return cls(
            f"This process has a Spark session on {running} and was asked for one on {asked}; a process has one. "
            "Stop it (session().stop()), or ask in another process."
        )


def session(address: str = "") -> SparkSession:
    """The session of this process, started when it is first asked for, on the cluster of that address, if any.

    Raises the errors above, within seconds.
    """
    where = address or os.environ.get(MASTER) or LOCAL
    running = _running()
    if running is not None:
        if running.sparkContext.master != where:
            raise OtherMasterError.of(running.sparkContext.master, where)
        return running
    _require_java()
    require_reachable(where)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # of itself Spark takes whatever `python3` is
    if _is_here(where):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    return _started(where)


def _started(where: str) -> SparkSession:
    from pyspark.sql import SparkSession

    builder: Any = SparkSession.builder.master(where).appName("mlops")
    for name, value in {**(_on_this_machine() if _is_here(where) else {}), **SETTINGS}.items():
        builder = builder.config(name, value)
    try:
        with _signals_as_they_are():
            started: SparkSession = builder.getOrCreate()
    except Exception as problem:  # a master that answers, and turns us away: Java's errors reach us as one of Py4J's
        if where.startswith("spark://"):
            raise ClusterUnreachableError.of(where, str(problem).splitlines()[0]) from problem
        raise
    return started


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Spark takes SIGINT when it starts; it is Dagster's, which ends the run by it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "zstd",
    # A task imports this project from where it lies: on a cluster it lies at the same place on every machine.
    "spark.executorEnv.PYTHONPATH": str(PROJECT),
}


def _on_this_machine() -> dict[str, str]:
    """Loopback alone; as many pieces as a few cores can use, and a share of the memory, where Spark would take 1 GB."""
    import psutil

    quarter = max(1, psutil.virtual_memory().total // (4 << 30))
    return {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": os.environ.get("SPARK_DRIVER_MEMORY") or f"{quarter}g",
        "spark.sql.shuffle.partitions": str(4 * (os.cpu_count() or 1)),
    }


def _is_here(where: str) -> bool:
    return where.startswith("local") or urlsplit(where).hostname in ("127.0.0.1", "localhost")


def _running() -> SparkSession | None:
    """The session that is there; one whose cluster went away is put aside."""
    if "pyspark" not in sys.modules:
        return None
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    context = SparkContext._active_spark_context  # noqa: SLF001  what is public starts one
    if context is None:
        return None
    if context._jsc.sc().isStopped():  # noqa: SLF001  likewise: only Java knows
        context.stop()
        return None
    running: SparkSession = SparkSession.builder.getOrCreate()
    return running


def _require_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = which("java", path=str(Path(home, "bin"))) if home else which("java")
    if java is None:
        raise SparkUnavailableError.of(f"there is no java in {home}/bin" if home else "there is no java on the PATH")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(?:1\.)?([0-9]+)', said.stderr + said.stdout)
    if version is None or int(version[1]) < JAVA:
        raise SparkUnavailableError.of(f"{java} is {version[0] if version else 'of an unknown version'}")


def require_reachable(where: str) -> None:
    """Raises ClusterUnreachableError where nothing listens; Spark itself would try for a minute."""
    if not where.startswith("spark://"):
        return  # Kubernetes, YARN and this process have their own ways
    reasons = [_refusal(place) for place in where.removeprefix("spark://").split(",")]
    if all(reasons):
        raise ClusterUnreachableError.of(where, "; ".join(map(str, reasons)))


def _refusal(place: str) -> str | None:
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, ValueError) as problem:
        return f"{place}: {problem}"
    return None


def one_task(function: Any, argument: Any) -> Any:
    """What a function of ours says of `argument`, asked on one of the cluster's machines, where the data is."""
    found: Sequence[Any] = session().sparkContext.parallelize([argument], 1).map(function).collect()
    return found[0]
