"""Events in Redis Streams: one stream a topic, `mlops:stream:<topic>`, one consumer group a group.

An entry has one field, `event`. The processes of one MLOPS_HOME read in turn under the machine's name, so that
a restarted one finds at once what its predecessor had read and not acknowledged; what a dead machine left
behind is claimed by others after a minute. Entries are removed once every group has acknowledged them.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from resources.streams import MAX_BATCH_BYTES, Message, StreamUnreachableError, Turn, encode

if TYPE_CHECKING:
    import redis

Item = TypeVar("Item")
Entries = list[tuple[bytes, dict[bytes, bytes] | None]]

SCHEMES = ("redis", "rediss")
FIELD = b"event"
CHUNK = 256  # entries per command: with the largest events, a batch's worth of memory
CLAIM_AFTER_SECONDS = 60.0


def open(url: str, topic: str, group: str) -> RedisStream:  # noqa: A001  called as `redis_streams.open`
    return RedisStream(url, topic, group)


class RedisStream:
    """A topic, read on behalf of `group` as `consumer`."""

    def __init__(
        self,
        url: str,
        topic: str,
        group: str,
        consumer: str | None = None,
        claim_after: float = CLAIM_AFTER_SECONDS,
    ) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._url, self._stream, self._group = url, f"mlops:stream:{topic}", group
        self._consumer, self._claim_after = consumer or socket.gethostname(), claim_after
        # protocol 2: the answers' shape is the same for every server and every version of the client
        # one retry, for a connection that was closed while it was idle; the caller is the one who waits
        options: dict[str, Any] = {"socket_timeout": 15, "socket_connect_timeout": 5, "retry": Retry(NoBackoff(), 1)}
        self._client: redis.Redis = redis.Redis.from_url(url, protocol=2, **options)
        self._turn = Turn(topic, f"{group}.{self._consumer}")

    def append(self, events: Iterable[Mapping[str, Any]], key: Sequence[str] = ()) -> int:  # noqa: ARG002  all is in order
        bodies = [encode(event) for event in events]
        with self._reaching():
            for chunk in _chunks(bodies, CHUNK):
                with self._client.pipeline(transaction=False) as pipeline:
                    for body in chunk:
                        pipeline.xadd(self._stream, {FIELD: body})
                    pipeline.execute()
        return len(bodies)

    def read(self, limit: int, wait: float) -> list[Message]:
        if not self._turn.take(wait):
            return []
        with self._reaching():
            messages = self._in_group(lambda: self._next(limit, wait))
        if not messages:
            self._turn.give()
        return messages

    def commit(self, messages: Sequence[Message]) -> None:
        with self._reaching():
            for chunk in _chunks([message.offset for message in messages], 1000):
                self._client.xack(self._stream, self._group, *chunk)
            self._trim()
        self._turn.give()

    def lag(self) -> int:
        with self._reaching():
            return self._in_group(self._uncommitted)

    def close(self) -> None:
        self._turn.give()
        self._client.close()

    # -- reading

    def _next(self, limit: int, wait: float) -> list[Message]:
        """What is ours already, else what a dead consumer left, else what is new."""
        return self._taken(self._own(), limit) or self._taken(self._claimed(), limit) or self._new(limit, wait)

    def _own(self) -> Iterator[Entries]:
        after = b"0"
        while entries := self._group_read(after, None):
            yield entries
            after = entries[-1][0]

    def _claimed(self) -> Iterator[Entries]:
        cursor: Any = b"0-0"
        while True:
            idle = round(self._claim_after * 1000)
            cursor, entries, *_ = self._client.xautoclaim(
                self._stream, self._group, self._consumer, idle, cursor, CHUNK
            )
            yield entries
            if cursor in (b"0-0", "0-0"):
                return

    def _new(self, limit: int, wait: float) -> list[Message]:
        deadline = time.monotonic() + wait
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            # BLOCK 0 is for ever; a long wait is cut, so that a dead connection is noticed
            first = self._group_read(b">", max(1, round(min(left, 5.0) * 1000)), min(CHUNK, limit))
            if first or not left:
                return self._taken(self._more(first, limit), limit) if first else []

    def _more(self, entries: Entries, limit: int) -> Iterator[Entries]:
        while entries:
            yield entries
            limit -= len(entries)
            entries = self._group_read(b">", None, min(CHUNK, limit)) if limit > 0 else []

    def _group_read(self, after: bytes, block: int | None, count: int = CHUNK) -> Entries:
        found: Any = self._client.xreadgroup(
            self._group, self._consumer, {self._stream: after}, count=count, block=block
        )
        return found[0][1] if found else []

    def _taken(self, pages: Iterator[Entries], limit: int) -> list[Message]:
        """Pages until the batch is full; entries that somebody deleted are acknowledged, for nobody has them."""
        messages: list[Message] = []
        room = MAX_BATCH_BYTES
        for entries in pages:
            if gone := [entry for entry, fields in entries if not fields]:
                self._client.xack(self._stream, self._group, *gone)
            found = [Message(entry.decode(), fields.get(FIELD, b"")) for entry, fields in entries if fields]
            messages += found
            room -= sum(len(message.body) for message in found)
            if len(messages) >= limit or room <= 0:
                break
        return messages[:limit]

    # -- the group

    def _in_group(self, work: Any) -> Any:
        """Do it, with the group made first where it is missing: on the first use, or after a Redis lost its memory."""
        import redis

        try:
            return work()
        except redis.ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
        self._create_group()
        return work()

    def _create_group(self) -> None:
        import redis

        try:
            self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):  # somebody else was first
                raise

    def _groups(self) -> list[dict[str, Any]]:
        groups: Any = self._client.xinfo_groups(self._stream)
        return groups

    def _trim(self) -> None:
        """Remove what every group has acknowledged."""
        floors = [self._floor(group) for group in self._groups()]
        if floors:
            self._client.xtrim(self._stream, minid=min(floors, key=_order), approximate=False)

    def _floor(self, group: Mapping[str, Any]) -> bytes:
        """The oldest entry that the group may still need."""
        if not group["pending"]:
            return bytes(group["last-delivered-id"])
        summary: Any = self._client.xpending(self._stream, group["name"])
        return bytes(summary["min"] or group["last-delivered-id"])

    def _uncommitted(self) -> int:
        """Pending ones, and those that nobody was given yet; counted to the first 10,000 of these."""
        import redis

        name = self._group.encode()
        try:
            mine = next((group for group in self._groups() if group["name"] == name), None)
        except redis.ResponseError:  # there is no stream yet
            return 0
        if mine is None:
            return int(self._client.xlen(self._stream))
        last = bytes(mine["last-delivered-id"])
        new: Any = self._client.xrange(self._stream, min=b"(" + last, count=10_000)
        return int(mine["pending"]) + len(new)

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        import redis

        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StreamUnreachableError.of(self._url, error) from error


def _order(entry: bytes) -> tuple[int, int]:
    milliseconds, _, number = entry.partition(b"-")
    return int(milliseconds), int(number or 0)


def _chunks(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
