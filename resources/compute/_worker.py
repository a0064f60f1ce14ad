"""The other side: a process that gets its work by Dagster Pipes, does it, and reports the result or what went wrong.

Started as `python -m resources.compute._worker`. What it logs is the run's. It ends with whoever started it: a run
that was killed leaves no training behind that writes where the next one does.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from dagster_pipes import PipesContext, open_dagster_pipes

from resources.compute import EntrypointError, Work, local, versions

WATCH_SECONDS = 0.5
OURS = ("mlops_assets", "resources", "model_assets")


class _Forward(logging.Handler):
    """Log lines to the run that asked."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.INFO)
        self._pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self._pipes.log.log(record.levelno, self.format(record))


def main() -> None:
    threading.Thread(target=_end_with, args=[os.getppid()], name="end-with-parent", daemon=True).start()
    with open_dagster_pipes() as pipes:
        for name in OURS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.INFO)
            logger.addHandler(_Forward(pipes))
        pipes.report_custom_message(_answer(pipes.extras))


def _answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    if differs := differences(asked["packages"]):
        return {"differs": differs}
    try:
        return {"result": local.run(Work(asked["entrypoint"], asked["arguments"]))}
    except EntrypointError as problem:
        return {"entrypoint": str(problem)}
    except Exception as problem:  # noqa: BLE001  whatever it is, who asked has to hear of it
        return {"failed": [type(problem).__name__, str(problem), traceback.format_exc()]}


def differences(expected: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    """The packages that have another version here, or none: what was expected, what is here."""
    here = versions(expected)
    return {name: (wanted, here.get(name)) for name, wanted in expected.items() if here.get(name) != wanted}


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
