"""How a serving process is started: the one command that `make up`, the demo and the tests run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from resources.environment import home

FOLLOW_RECORDS = "mlops_assets.serving.service:Endpoint"


def serve_command(
    port: int, *, target: str = FOLLOW_RECORDS, models: Sequence[str] = (), host: str = "127.0.0.1"
) -> tuple[list[str], dict[str, str]]:
    """The argv and environment of a server on `host:port`; `target` may also be a Bento tag or path.

    `models` limits it to some of the released models. It is two processes, a supervisor and a worker that it
    restarts: start it in a session of its own and stop the whole group.
    """
    argv = [sys.executable, "-m", "bentoml", "serve", target, "--host", host, "--port", str(port)]
    env = {
        **os.environ,
        "MLOPS_HOME": str(home()),
        "BENTOML_HOME": str(home() / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",  # BentoML takes only this word for yes
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": "1",  # a row is predicted faster by one thread than it is handed to several
    }
    return argv, {**env, "MLOPS_ENDPOINTS": ",".join(models)} if models else env
