"""The online store as a serving process uses it: while it is away nobody waits for it, and one thread looks for it.

The first request to find it away waits half a second at most, all the next not at all: they are told at once that
there is no store, until it has answered a probe again. A store that hangs must not hang an event loop, and with it
the requests of models that need no store.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from typing import Self

from mlops_assets.serving.plan import Found, Key
from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore, Reader, TableRead
from resources.online.redis_wire import RedisRefusedError

WITHIN_SECONDS = 0.25  # to connect, and to answer; a store nearby takes a thousandth of it
PROBE_SECONDS = 1.0  # a store that is there: often its absence is noticed before a request meets it
AGAIN_SECONDS = 0.2  # one that is away
logger = logging.getLogger(__name__)


class GuardedStore:
    """A packed store that fails at once while it is away; `mlops_assets.serving.plan.Store` is what it is to others."""

    def __init__(self, open_store: Callable[[], PackedStore]) -> None:
        self._open = open_store
        self._store: PackedStore | None = None  # None while it is away
        self._why = ""
        self._closing = threading.Event()
        self._look()
        self._thread = threading.Thread(target=self._run, name="online-store", daemon=True)
        self._thread.start()

    @classmethod
    def at(cls, url: str) -> Self:
        """The store at a URL, there or not. Raises UnknownStoreError."""
        return cls(lambda: PackedStore.open(url, WITHIN_SECONDS))

    def reader(self, reads: Sequence[TableRead], /) -> GuardedReader:
        return GuardedReader(self, reads)

    def now(self) -> PackedStore:
        """The store while it is there. Raises OnlineStoreUnavailableError."""
        store = self._store
        if store is None:
            raise OnlineStoreUnavailableError(self._why)
        return store

    def lost(self, store: PackedStore, why: Exception) -> None:
        """Somebody found it away."""
        if self._store is store:
            self._store = None
            self._why = str(why)
            logger.warning("the online store is away: %s", why)
            store.close()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        if self._store is not None:
            self._store.close()

    def _run(self) -> None:
        while not self._closing.wait(PROBE_SECONDS if self._store is not None else AGAIN_SECONDS):
            self._look()

    def _look(self) -> None:
        """Is it there, or is it back?"""
        held = self._store
        try:
            store = held or self._open()
            store.probe()
        except (OSError, sqlite3.Error, RedisRefusedError) as error:
            if held is not None:
                self.lost(held, error)
            elif str(error) != self._why:
                self._why = str(error)
                logger.warning("the online store is away: %s", error)
        else:
            if held is None and self._why:
                logger.warning("the online store is back")
            if held is None:
                self._store = store


class GuardedReader:
    """Reads some tables of whatever store is there now."""

    def __init__(self, guard: GuardedStore, reads: Sequence[TableRead]) -> None:
        self._guard = guard
        self._reads = reads
        self._of: tuple[PackedStore, Reader] | None = None

    def read(self, keys: Sequence[Sequence[Key]], /) -> Sequence[Sequence[Found | None]]:
        """As `Reader.read`; OnlineStoreUnavailableError without a wait while the store is away."""
        store, of = self._guard.now(), self._of
        if of is None or of[0] is not store:
            of = self._of = store, store.reader(self._reads)
        try:
            return of[1].read(keys)
        except OnlineStoreUnavailableError as error:
            self._guard.lost(store, error)
            raise
        except RedisRefusedError as error:  # it is there, and perhaps has the tables of others
            raise OnlineStoreUnavailableError(str(error)) from error
