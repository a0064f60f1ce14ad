"""The log of a serving process: a JSON object a line on standard error, with the request's id where there is one."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

ACCESS = "MLOPS_ENDPOINT_ACCESS_LOG"  # "true" logs every request, at some ten microseconds each
LOGGERS = ("mlops_assets", "resources", "bentoml", "uvicorn.error")
# What every record has of itself; the rest was given with extra={...}.
OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """time, level, logger, message, whatever was given as `extra`, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
            **{name: value for name, value in vars(record).items() if name not in OWN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def log_as_json() -> None:
    """Let our loggers, BentoML's and uvicorn's write JSON lines; called once, when the process starts serving.

    uvicorn's line for every request is ours to write (`logs_access`): without a handler it makes none.
    """
    access = logging.getLogger("uvicorn.access")
    access.handlers[:], access.propagate = [], False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def logs_access() -> bool:
    return os.environ.get(ACCESS, "").lower() == "true"
