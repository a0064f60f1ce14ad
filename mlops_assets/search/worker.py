"""A process that tries: a request a line comes in, an answer a line goes out, both JSON; it ends with who started it.

Started as `python -m mlops_assets.search.worker <package.module:function>`. What is printed meanwhile goes to the
standard error, what is logged comes with the answer.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from resources.parent import end_with

OURS = ("mlops_assets", "resources", "model_assets")


class _Kept(logging.Handler):
    """Log lines until somebody takes them away."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.name, record.levelno, self.format(record)))


def main() -> None:
    end_with(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches all of a terminal's processes: who asked ends us
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for request in sys.stdin:
        answers.write(json.dumps(answer(sys.argv[1], json.loads(request))) + "\n")
        answers.flush()


def answer(entrypoint: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """`line`, or `failed` (the error's type, its words, where it came from), and the `logs` of our own packages."""
    kept = _Kept()
    loggers = [logging.getLogger(name) for name in OURS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(kept)
    try:
        module, _, name = entrypoint.partition(":")
        told: dict[str, Any] = {"line": getattr(import_module(module), name)(request)}
    except Exception as problem:  # noqa: BLE001  whatever it is, who asked has to hear of it
        told = {"failed": [type(problem).__name__, str(problem), traceback.format_exc()]}
    finally:
        for logger in loggers:
            logger.removeHandler(kept)
    return told | {"logs": kept.lines}


if __name__ == "__main__":
    main()
