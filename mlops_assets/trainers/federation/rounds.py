"""Asking the nodes of a federation, all at once: who fails or is late is left out of a round, and asked again later."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from queue import Empty, SimpleQueue
from typing import Any, Self

from resources.compute import Compute, Work
from resources.compute.local import asking

TRIES = 3

logger = logging.getLogger(__name__)


class FederationError(RuntimeError):
    """Too few nodes of a federation answered."""

    @classmethod
    def of(cls, what: str, wanted: int, missing: Mapping[str, str]) -> Self:
        told = "; ".join(f"{name} {why}" for name, why in sorted(missing.items()))
        return cls(
            f"{what} needs {wanted} nodes and had fewer, {TRIES} times: {told}. "
            "Mend them, or ask for fewer (at_least=...); the training goes on from its last checkpoint."
        )


class Nodes:
    """The nodes of a federation, each a machine of one kind of compute, chosen by its label `mlops/node`."""

    def __init__(self, names: Sequence[str], kind: str, at_least: int, wait_seconds: float) -> None:
        self.names, self.at_least, self.wait = tuple(names), at_least, wait_seconds
        self._machine: Compute = import_module(f"resources.compute.{kind}")
        self._context = asking()  # of the thread that made this
        self._busy: dict[str, threading.Thread] = {}

    def ask(
        self, entrypoint: str, arguments: Mapping[str, Any], meanwhile: Callable[[], None] | None = None
    ) -> dict[str, dict[str, Any]]:
        """The answers by node, of those that came in time; `meanwhile` is done while they work.

        Raises FederationError when fewer than `at_least` answered, three times.
        """
        for _ in range(TRIES):
            answers, missing = self._asked(entrypoint, arguments, meanwhile)
            for name, why in missing.items():
                logger.warning("%s goes on without node %s, which %s", _name(entrypoint), name, why)
            if len(answers) >= self.at_least:
                return answers
            meanwhile = None  # that was done
        raise FederationError.of(_name(entrypoint), self.at_least, missing)

    def _asked(
        self, entrypoint: str, arguments: Mapping[str, Any], meanwhile: Callable[[], None] | None
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """The answers, and why the others gave none."""
        late = {name for name, thread in self._busy.items() if thread.is_alive()}
        missing = dict.fromkeys(late, "is still at an earlier round")
        told: SimpleQueue[tuple[str, dict[str, Any] | str]] = SimpleQueue()
        until = time.monotonic() + self.wait
        for name in self.names:
            if name not in late:
                work = Work(entrypoint, {**arguments, "node": name}, {"node_selector": {"mlops/node": name}})
                self._begin(name, work, told)
        if meanwhile is not None:
            meanwhile()
        answers: dict[str, dict[str, Any]] = {}
        while len(answers) + len(missing) < len(self.names):
            try:
                name, answer = told.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                silent = {*self.names} - {*answers} - {*missing}
                return answers, missing | dict.fromkeys(silent, f"did not answer within {self.wait:g} s")
            if isinstance(answer, str):
                missing[name] = answer
            else:
                answers[name] = answer
        return answers, missing

    def _begin(self, name: str, work: Work, told: SimpleQueue[tuple[str, dict[str, Any] | str]]) -> None:
        """In a thread that keeps nobody from ending: one that hangs is only late."""
        work = Work(work.entrypoint, work.arguments, work.resources, self._context)

        def run() -> None:
            try:
                told.put((name, self._machine.run(work)))
            except Exception as problem:  # noqa: BLE001  whatever a node died of, the others go on, and it is told
                told.put((name, f"failed: {problem}"))

        self._busy[name] = threading.Thread(target=run, name=f"node-{name}", daemon=True)
        self._busy[name].start()


def _name(entrypoint: str) -> str:
    return f"A round of {entrypoint.rpartition(':')[2]!r}"
