"""The ingestor: reads a source's events batch by batch, and commits a batch when every store has it.

A batch goes to the dead letters and the lake, then to the online store, then its offsets are committed. Each step
may be repeated and changes nothing then: a process that is killed anywhere loses nothing and doubles nothing.
Ingestors of one team take turns batch by batch, so that none computes from what another is about to replace.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from filelock import FileLock

from mlops_assets.catalog import Catalog, UnknownDeclarationError, gather
from mlops_assets.claims import key_of
from mlops_assets.declarations import Source
from mlops_assets.streaming import online
from mlops_assets.streaming.dead_letters import bury, dead_letter_path
from mlops_assets.streaming.events import Judge
from mlops_assets.streaming.offline import OfflineTables
from mlops_assets.streaming.telling import Telling
from resources.environment import home, resources_for
from resources.streams import EventStream, Message, StreamUnreachableError, open_stream

if TYPE_CHECKING:
    from resources.feast import FeastResource
    from resources.lake import Lake

Result = TypeVar("Result")
Say = Callable[[str], None]
BATCH = 10_000
LONGEST_PAUSE = 5.0


class NotStreamedError(LookupError):
    """A source without a stream was to be ingested or produced to."""

    @classmethod
    def of(cls, source: Source, streamed: Iterable[str]) -> Self:
        return cls(
            f"{source.title} declares no stream (those that do: {', '.join(sorted(streamed)) or 'none'}). "
            f'Declare it: @source(stream="{source.name}", ...).'
        )


@dataclass
class Ingested:
    """What an ingestor did since it was started."""

    events: int = 0
    refused: int = 0
    batches: int = 0
    online: int = 0
    newest: datetime | None = None
    held_back: dict[str, str] = field(default_factory=dict)


def produce(source: str, events: Iterable[Mapping[str, Any]], catalog: Catalog | None = None) -> int:
    """Append events to the source's stream, those of one row's key in order; returns how many.

    Raises UnknownDeclarationError, NotStreamedError, EventTooLargeError and StreamUnreachableError.
    """
    declared = streamed_source(source, catalog or gather())
    stream = stream_of(declared)
    try:
        return stream.append(events, key_of(declared))
    finally:
        stream.close()


def ingest(
    source: str,
    *,
    once: bool = False,
    max_wait: float = 1.0,
    limit: int = BATCH,
    patience: float = 60.0,
    tell_every: float = 30.0,
    say_every: float = 10.0,
    say: Say | None = None,
    catalog: Catalog | None = None,
) -> Ingested:
    """Keep the source and the views that read it up to date from its stream, until SIGTERM or Ctrl-C.

    `once` ends when no event comes for `max_wait` seconds. A server that is away is waited for `patience` seconds,
    then StreamUnreachableError (or the online store's own error) is raised. Raises UnknownDeclarationError and
    NotStreamedError at once. A batch in hand is finished, or given again to the next ingestor.
    """
    catalog, say = catalog or gather(), say or _print
    declared = streamed_source(source, catalog)
    ingestor = Ingestor(declared, catalog, stream_of(declared), **_stores(), limit=limit, tell_every=tell_every)
    with _stopping() as stop:
        try:
            _run(ingestor, Patience(patience, stop, say), Progress(ingestor, say, say_every), max_wait, once=once)
        finally:
            ingestor.stream.close()
    return ingestor.done


def streamed_source(name: str, catalog: Catalog) -> Source:
    """The declared source; raises UnknownDeclarationError and NotStreamedError."""
    sources = {table.id: table for table in catalog.tables.values() if isinstance(table, Source)}
    if name not in sources:
        raise UnknownDeclarationError.of("source", name, sources)
    if sources[name].stream is None:
        raise NotStreamedError.of(sources[name], [each for each, table in sources.items() if table.stream])
    return sources[name]


def stream_of(source: Source) -> EventStream:
    """The source's stream, read on behalf of the source's own group."""
    return open_stream(str(source.stream), f"{source.team}.{source.name}")


class Ingestor:
    """One source, its stream, and the stores that its events go to."""

    def __init__(
        self,
        source: Source,
        catalog: Catalog,
        stream: EventStream,
        lake: Lake,
        feast: FeastResource,
        *,
        limit: int = BATCH,
        tell_every: float = 30.0,
    ) -> None:
        self.source, self.stream, self.limit = source, stream, limit
        self.telling = Telling(source, catalog, lake, tell_every)
        self.done = Ingested()
        self._catalog, self._lake, self._feast = catalog, lake, feast
        self._judge, self._tables = Judge(source), OfflineTables(source, catalog, lake)
        self._lock = home() / "ingest" / f"{source.team}.lock"
        self._registered = False

    def read(self, wait: float) -> list[Message]:
        return self.stream.read(self.limit, wait)

    def apply(self, messages: Sequence[Message]) -> int:
        """Bring every store up to date with the batch; may be repeated, whatever became of it the first time.

        Returns how many events were refused.
        """
        rows, refused = self._judge.rows(messages)
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._lock):
            bury(self.source, refused)
            changed = self._tables.apply(rows)
            newest = self._tables.newest()
            published = self._publish(changed.partitions, newest)
            self.telling.note(changed.partitions, **{"stream/offset": messages[-1].offset, "newest": str(newest)})
        self.done.newest, self.done.held_back = newest, changed.held_back
        self.done.online += published
        return len(refused)

    def commit(self, messages: Sequence[Message], refused: int) -> None:
        self.stream.commit(messages)
        self.done.events += len(messages)
        self.done.refused += refused
        self.done.batches += 1

    def _publish(self, changed: Mapping[str, list[str]], newest: datetime | None) -> int:
        views = online.online_views(self._tables.views, changed)
        if newest is None or not views:
            return 0
        if not self._registered:
            online.register(self._feast, self._catalog, self._lake)
            self._registered = True
        moment = online.as_of(newest)
        return sum(online.publish(self._feast, self._lake, view, changed[view.id], moment) for view in views)


def _run(ingestor: Ingestor, patience: Patience, progress: Progress, max_wait: float, *, once: bool) -> None:
    while not patience.stop.is_set():
        messages = patience.through(lambda: ingestor.read(max_wait))
        if messages:
            _deal_with(ingestor, patience, messages)
        if ingestor.telling.due():
            progress.warn(ingestor.telling.tell())
        progress.say_when_due()
        if once and not messages:
            break
    progress.warn(ingestor.telling.tell())
    progress.say_now()


def _deal_with(ingestor: Ingestor, patience: Patience, messages: Sequence[Message]) -> None:
    refused = patience.through(lambda: ingestor.apply(messages))
    patience.through(lambda: ingestor.commit(messages, refused))


@dataclass
class Patience:
    """How long a server that is away is waited for, in seconds; a signal to stop ends the waiting."""

    seconds: float
    stop: threading.Event
    say: Say

    def through(self, work: Callable[[], Result]) -> Result:
        """Do it, again and again while a server is away; raises the server's error when patience is at its end."""
        deadline, pause = time.monotonic() + self.seconds, 0.1
        while True:
            try:
                return work()
            except _away() as problem:
                if self.stop.is_set() or time.monotonic() + pause > deadline:
                    raise
                self.say(f"{problem} Trying again for {deadline - time.monotonic():.0f} s.")
            self.stop.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _away() -> tuple[type[Exception], ...]:
    """The errors that say that a server is away; an online store without Redis knows no more."""
    found: list[type[Exception]] = [StreamUnreachableError, ConnectionError]
    if "redis" in sys.modules:
        import redis

        found += [redis.ConnectionError, redis.TimeoutError]
    return tuple(found)


class Progress:
    """A line now and then: how many events, how fast, how many are left, up to when."""

    def __init__(self, ingestor: Ingestor, say: Say, every: float) -> None:
        self._ingestor, self._say, self._every = ingestor, say, every
        self._since, self._events = time.monotonic(), 0
        self._warned: dict[str, str] = {}

    def warn(self, problem: str | None) -> None:
        if problem:
            self._say(problem)

    def say_when_due(self) -> None:
        if time.monotonic() >= self._since + self._every:
            self.say_now()

    def say_now(self) -> None:
        done, now = self._ingestor.done, time.monotonic()
        rate = (done.events - self._events) / max(now - self._since, 1e-3)
        self._since, self._events = now, done.events
        refused = f", {done.refused} refused (see {dead_letter_path(self._ingestor.source)})" if done.refused else ""
        self._say(
            f"{self._ingestor.source.id}: {done.events} events{refused}, {rate:.0f}/s, {self._lag()}, "
            f"up to {done.newest or 'nothing yet'}"
        )
        for view, why in done.held_back.items():
            if self._warned.get(view) != why:
                self._say(f"{view} is left as it was: {why}")
        self._warned = dict(done.held_back)

    def _lag(self) -> str:
        try:
            return f"about {self._ingestor.stream.lag()} to go"
        except StreamUnreachableError:
            return "nobody knows how many to go"


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """Set by SIGTERM and Ctrl-C, so that the batch in hand is finished; a second signal is as rude as ever."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stores() -> dict[str, Any]:
    resources = resources_for()
    return {"lake": resources["lake"], "feast": resources["feast"]}


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
