"""Keeps what this process says of itself, beside each record, at what it really serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mlops_assets.serving.releases import Served
from resources.serving_status import StatusFile

AGAIN_SECONDS = 10.0
logger = logging.getLogger(__name__)


class StatusFiles:
    """One a model. A place where nothing can be written is told once; answering does not depend on it."""

    def __init__(self, record_of: Callable[[str], Path]) -> None:
        self._record_of = record_of
        self._files: dict[str, StatusFile] = {}
        self._said: dict[str, Served] = {}
        self._at = 0.0
        self._complained = False

    def tell(self, served: Iterable[Served]) -> None:
        """Write what changed, and everything every few seconds."""
        again = time.monotonic() - self._at >= AGAIN_SECONDS
        if again:
            self._at = time.monotonic()
        for one in served:
            if again or one is not self._said.get(one.model):
                self._write(one)

    def close(self) -> None:
        for file in self._files.values():
            try:
                file.remove()
            except OSError as error:
                self._complain(error)

    def _write(self, served: Served) -> None:
        self._said[served.model] = served
        try:
            self._file(served.model).write(served.status())
        except OSError as error:
            self._complain(error)

    def _file(self, model: str) -> StatusFile:
        if model not in self._files:
            self._files[model] = StatusFile(self._record_of(model))
            self._files[model].sweep()
        return self._files[model]

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("nobody can read what this process serves: %s", error)
