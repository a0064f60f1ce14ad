"""A ledger of time: every moment of a process is charged to exactly one account, the innermost that is open.

Nothing is measured twice and nothing is lost: the accounts add up to the time the ledger was kept.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

REST = "everything else"
Account = tuple[str, ...]


class Ledger:
    """`spent` is seconds by account: the names that were open, from the outermost in.

    It is kept for the thread that opened it; what other threads do passes while that thread waits for them.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.spent: defaultdict[Account, float] = defaultdict(float)
        self._open: list[str] = []
        self._clock, self._since = clock, clock()
        self._thread = threading.get_ident()

    @contextmanager
    def charge(self, name: str) -> Iterator[None]:
        """Charge the block to `name`, less what is charged to others inside it."""
        if threading.get_ident() != self._thread or self._open[-1:] == [name]:
            yield
            return
        self.settle()
        self._open.append(name)
        try:
            yield
        finally:
            self.settle()
            self._open.pop()

    def settle(self) -> None:
        """Charge the time until now to what is open."""
        now = self._clock()
        self.spent[tuple(self._open) or (REST,)] += now - self._since
        self._since = now

    def charging(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, charged; of a generator only the time until each value, not what others do with it."""

        @functools.wraps(function)
        def charged(*given: Any, **named: Any) -> Any:
            with self.charge(name):
                result = function(*given, **named)
            return self._steps(name, result) if isinstance(result, Generator) else result

        return charged

    def _steps(self, name: str, generator: Generator[Any, Any, Any]) -> Iterator[Any]:
        end = object()
        try:
            while True:
                with self.charge(name):
                    value = next(generator, end)
                if value is end:
                    return
                yield value
        finally:
            with self.charge(name):
                generator.close()
