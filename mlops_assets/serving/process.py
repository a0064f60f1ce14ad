"""How a serving process is started: the one command that `make up`, the demo and the tests run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Self

from resources.environment import home

FOLLOW_RECORDS = "mlops_assets.serving.service:Endpoint"
WORKERS = "MLOPS_ENDPOINT_WORKERS"


class WorkersError(ValueError):
    """MLOPS_ENDPOINT_WORKERS is not a number of processes."""

    @classmethod
    def of(cls, given: str) -> Self:
        return cls(f"{WORKERS} is {given!r} (allowed: a whole number from 1). Set it, or leave it out for one worker.")


def serve_command(
    port: int,
    *,
    target: str = FOLLOW_RECORDS,
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    workers: int | None = None,
) -> tuple[list[str], dict[str, str]]:
    """The argv and environment of a server on `host:port`: of what the release records say, or of one Bento.

    The first is our supervisor with so many `workers` (else as MLOPS_ENDPOINT_WORKERS says, else one), of which
    `models` limits what they serve to some of the released models. The second, where `target` is the tag or path of a
    Bento, is plain `bentoml serve`. Either is several processes: start it in a session of its own and stop the whole
    group. WorkersError when MLOPS_ENDPOINT_WORKERS is no number of workers.
    """
    where = ["--host", host, "--port", str(port)]
    argv = [sys.executable, "-m", "bentoml", "serve", target, *where]
    if target == FOLLOW_RECORDS:
        count = worker_count() if workers is None else workers
        argv = [sys.executable, "-m", "mlops_assets.serving.server.supervisor", *where, "--workers", str(count)]
    env = {
        **os.environ,
        "MLOPS_HOME": str(home()),
        "BENTOML_HOME": str(home() / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",  # BentoML takes only this word for yes
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",  # a row is predicted faster by one thread than it is handed to several
    }
    return argv, {**env, "MLOPS_ENDPOINTS": ",".join(models)} if models else env


def worker_count() -> int:
    """As many workers as the environment says. Raises WorkersError."""
    given = os.environ.get(WORKERS, "1")
    if not given.isdecimal() or int(given) < 1:
        raise WorkersError.of(given)
    return int(given)
