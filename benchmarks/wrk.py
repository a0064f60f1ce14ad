"""Load from wrk, which costs a small part of what a server costs; a generator in Python would be measured itself.

Every connection asks again as soon as it is answered. Answers other than 2xx, and connections that broke, are
counted: a figure with failures is none.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
local requests, at = {}, 0
function init(args)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = args[1]
  for place = 2, #args do
    local file = assert(io.open(args[place], "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, nil, file:read("*a"))
    file:close()
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format('\\n{"requests":%d,"seconds":%.6f,"p50":%.3f,"p99":%.3f,"refused":%d,"broken":%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""
MISSING = (
    "Nothing was measured: wrk is not on the PATH, and no generator in Python could load these servers. "
    "Install it (apt-get install wrk, brew install wrk), then run the benchmark again."
)


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw; latencies in microseconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    refused: int
    broken: int

    @property
    def failed(self) -> int:
        return self.refused + self.broken

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class FailedRequestsError(AssertionError):
    """A server that is to be measured failed requests."""

    @classmethod
    def of(cls, name: str, clients: int, load: Load) -> FailedRequestsError:
        return cls(f"{name} refused {load.refused} requests of {clients} clients and broke {load.broken}: {load}.")


@dataclass(frozen=True)
class Bodies:
    """Files with the bodies that are sent in turn, and what they are."""

    files: tuple[Path, ...]
    content_type: str

    @classmethod
    def written(cls, directory: Path, bodies: Sequence[bytes], content_type: str = "application/json") -> Bodies:
        directory.mkdir(parents=True)
        files = tuple(directory / f"{number:04d}" for number in range(len(bodies)))
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        return cls(files, content_type)


def available() -> bool:
    return shutil.which("wrk") is not None


def command(url: str, bodies: Bodies, clients: int, seconds: float, script: Path) -> list[str]:
    """The argv of wrk on one thread; `script` is where SCRIPT was written. wrk knows whole seconds only."""
    load = ["-t1", f"-c{clients}", f"-d{max(round(seconds), 1)}s", "--timeout", "10s", "-s", str(script), url]
    return ["wrk", *load, "--", bodies.content_type, *map(str, bodies.files)]


def run(url: str, bodies: Bodies, clients: int, seconds: float) -> Load:
    """Ask `url` for so many seconds from so many connections."""
    script = bodies.files[0].parent.with_suffix(".lua")
    script.write_text(SCRIPT)
    ran = subprocess.run(command(url, bodies, clients, seconds, script), capture_output=True, text=True, check=True)
    return read(ran.stdout)


@contextmanager
def running(url: str, bodies: Bodies, clients: int, seconds: float) -> Iterator[Callable[[], Load]]:
    """Ask `url` during the block, `seconds` at most; afterwards the given function tells what wrk saw."""
    script = bodies.files[0].parent.with_suffix(".lua")
    script.write_text(SCRIPT)
    process = subprocess.Popen(command(url, bodies, clients, seconds, script), stdout=subprocess.PIPE, text=True)
    try:
        yield lambda: read(process.communicate()[0])
    finally:
        process.send_signal(signal.SIGINT)  # wrk ends and says what it saw


def read(output: str) -> Load:
    """The last line of what wrk wrote."""
    return Load(**json.loads(output.strip().splitlines()[-1]))
