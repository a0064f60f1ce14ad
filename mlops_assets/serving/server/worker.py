"""One process that answers: BentoML's worker for our service, on a socket and a lifeline that its supervisor gave it.

The lifeline is the end of a pipe that nobody writes to. When it closes, the supervisor is gone, and this process must
not stay behind on the port: it ends as by SIGTERM, with its requests answered and its log written.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

DRAIN_SECONDS = 15  # for the requests in flight; the longest deadline of a request is 10 s unless declared otherwise
KEEP_ALIVE_SECONDS = 75  # longer than the minute after which common proxies close, so that they never meet a closed one
ORPHAN_SECONDS = 20.0


def main() -> None:
    """`--number N SOCKET LIFELINE`, the last two file descriptors."""
    _, number, listening, lifeline = sys.argv[1:]
    threading.Thread(target=_end_with, args=(int(lifeline),), name="lifeline", daemon=True).start()
    # What `bentoml serve` starts, with the same arguments; it has no public name.
    from _bentoml_impl.worker.service import main as serve

    from mlops_assets.serving.process import FOLLOW_RECORDS

    serve(
        [
            FOLLOW_RECORDS,
            *("--fd", listening),
            *("--worker-id", number),
            *("--timeout-keep-alive", str(KEEP_ALIVE_SECONDS)),
            *("--timeout-graceful-shutdown", str(DRAIN_SECONDS)),
        ]
    )


def _end_with(lifeline: int) -> None:
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
