"""The other side: a process that gets its work by Dagster Pipes, does it, and reports the result or what went wrong.

Started as `python -m resources.compute._worker`, or called by a cluster's own worker (`serve`). What it logs is the
run's. A process that was started ends with whoever started it: a run that was killed leaves no training behind that
writes where the next one does.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Mapping
from typing import Any

from dagster_pipes import PipesContext, PipesParamsLoader, open_dagster_pipes

from resources.compute import EntrypointError, Work, local, versions
from resources.parent import end_with

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the process that a job of its job API starts
OURS = ("mlops_assets", "resources", "model_assets")


class _Forward(logging.Handler):
    """Log lines to the run that asked."""

    def __init__(self, pipes: PipesContext) -> None:
        super().__init__(logging.INFO)
        self._pipes = pipes

    def emit(self, record: logging.LogRecord) -> None:
        self._pipes.log.log(record.levelno, self.format(record))


def main() -> None:
    end_with(os.getppid())
    if RAY_JOB in os.environ:
        import ray

        ray.init()  # work that hands out more of it finds the cluster that it runs on
    serve()


def serve(asked: PipesParamsLoader | None = None, here: Mapping[str, str] | None = None) -> None:
    """Do the work that is asked for, by default in this process's environment. Once a process.

    `here` is what the kind of compute wants to know of this process, should it die.
    """
    with open_dagster_pipes(params_loader=asked) as pipes:
        if here:
            pipes.report_custom_message(dict(here))
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


if __name__ == "__main__":
    main()
