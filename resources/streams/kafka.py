"""Events in Kafka: `kafka://host:port,host:port`, one topic a topic, one consumer group a group.

The query of the URL is librdkafka's configuration (`?security.protocol=SASL_SSL&...`). Events of equal key go to
one partition, hence stay in order. Offsets are committed by hand, after the events were dealt with; a commit
that a rebalance overtook is no loss: after it every reader begins at what is committed. Hence librdkafka's default
assignors and not the cooperative one, whose readers keep partitions and go on behind an offset that was not taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from resources.streams import MAX_BATCH_BYTES, Message, StreamUnreachableError, encode

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Producer

SCHEMES = ("kafka",)
SECONDS = 10.0
JOIN_SECONDS = 15.0  # a group waits for its dead members to time out
CHUNK = 500


def open(url: str, topic: str, group: str) -> KafkaStream:  # noqa: A001  called as `kafka.open`
    return KafkaStream(url, topic, group)


class KafkaStream:
    """A topic, read on behalf of `group`; an offset is `<partition>:<offset>`."""

    def __init__(self, url: str, topic: str, group: str) -> None:
        self._url, self._topic, self._group = url, topic, group
        self._trouble: str | None = None
        self._member = False

    def append(self, events: Iterable[Mapping[str, Any]], key: Sequence[str] = ()) -> int:
        given, failed = list(events), list[str]()
        for event in given:
            self._produce(encode(event), orjson.dumps([event[name] for name in key]) if key else None, failed)
        if unsent := self._producer.flush(SECONDS):
            self._producer.purge()  # the caller sends them again
            raise StreamUnreachableError.of(self._url, self._trouble or f"{unsent} events were not accepted")
        if failed:
            raise StreamUnreachableError.of(self._url, failed[0])
        return len(given)

    def read(self, limit: int, wait: float) -> list[Message]:
        messages, room, patience = self._joined(), MAX_BATCH_BYTES, wait
        while len(messages) < limit and room > 0:
            found = self._consume(min(CHUNK, limit - len(messages)), patience)
            if not found:
                break
            messages += found
            room -= sum(len(message.body) for message in found)
            patience = 0.0  # the first event is waited for, not a full batch
        if not messages:
            self._require_server()
        return messages

    def commit(self, messages: Sequence[Message]) -> None:
        from confluent_kafka import KafkaError, KafkaException

        if not messages:
            return
        try:
            self._consumer.commit(offsets=self._next_offsets(messages), asynchronous=False)
        except KafkaException as error:
            code = error.args[0].code()
            overtaken = (
                KafkaError.ILLEGAL_GENERATION,
                KafkaError.UNKNOWN_MEMBER_ID,
                KafkaError.REBALANCE_IN_PROGRESS,
                KafkaError._ASSIGNMENT_LOST,  # noqa: SLF001  librdkafka's own codes have such names
                KafkaError._NO_OFFSET,  # noqa: SLF001
            )
            if code not in overtaken:
                raise StreamUnreachableError.of(self._url, error.args[0]) from error

    def lag(self) -> int:
        from confluent_kafka import KafkaException

        try:
            return sum(self._behind(place) for place in self._consumer.committed(self._consumer.assignment(), SECONDS))
        except KafkaException as error:
            raise StreamUnreachableError.of(self._url, error.args[0]) from error

    def close(self) -> None:
        """Leaves the group, so that others take over at once."""
        for opened in ("_consumer", "_producer"):
            if opened in self.__dict__:
                closing = self.__dict__.pop(opened)
                closing.close() if opened == "_consumer" else closing.flush(SECONDS)

    # -- both ends

    @property
    def _options(self) -> dict[str, Any]:
        where = urlsplit(self._url)
        return {
            "bootstrap.servers": where.netloc,
            "error_cb": self._noted,
            "log_level": 2,  # what matters comes through error_cb
            **dict(parse_qsl(where.query)),
        }

    def _noted(self, error: Any) -> None:
        self._trouble = error.str()

    @cached_property
    def _producer(self) -> Producer:
        from confluent_kafka import Producer

        return Producer({"enable.idempotence": True, "linger.ms": 5, **self._options})

    @cached_property
    def _consumer(self) -> Consumer:
        from confluent_kafka import Consumer

        consumer = Consumer(
            {
                "group.id": self._group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "session.timeout.ms": 10_000,  # how long a killed reader's events wait for another
                "allow.auto.create.topics": True,
                "queued.max.messages.kbytes": MAX_BATCH_BYTES // 1024,
                **self._options,
            }
        )
        consumer.subscribe([self._topic], on_assign=self._assigned)
        return consumer

    def _produce(self, body: bytes, key: bytes | None, failed: list[str]) -> None:
        def delivered(error: Any, _message: Any) -> None:
            if error is not None:
                failed.append(error.str())

        deadline = time.monotonic() + SECONDS
        while True:
            try:
                return self._producer.produce(self._topic, body, key, on_delivery=delivered)
            except BufferError:  # librdkafka's queue is full: let it send some
                if time.monotonic() > deadline:
                    raise StreamUnreachableError.of(self._url, self._trouble or "its queue stays full") from None
                self._producer.poll(0.1)

    def _joined(self) -> list[Message]:
        """The first time, wait until the group has given out its partitions: before that, nothing says nothing."""
        deadline = time.monotonic() + JOIN_SECONDS
        while not self._member and self._trouble is None and time.monotonic() < deadline:
            if found := self._consume(1, 0.2):
                return found
        return []

    def _assigned(self, _consumer: Any, _partitions: Any) -> None:
        self._member = True

    def _consume(self, limit: int, wait: float) -> list[Message]:
        """Events that are there; when there is none, one that comes within `wait`."""
        found = self._consumer.consume(limit, timeout=0)
        if not found and wait > 0:
            found = self._consumer.consume(1, timeout=wait)
        return [self._message(item) for item in found if self._is_event(item)]

    def _is_event(self, item: Any) -> bool:
        if (error := item.error()) is not None:
            self._noted(error)
        return error is None

    def _message(self, item: Any) -> Message:
        self._trouble = None
        return Message(f"{item.partition()}:{item.offset()}", item.value() or b"")

    def _next_offsets(self, messages: Sequence[Message]) -> list[Any]:
        from confluent_kafka import TopicPartition

        newest: dict[int, int] = {}
        for message in messages:
            partition, offset = map(int, message.offset.split(":"))
            newest[partition] = max(newest.get(partition, 0), offset + 1)
        return [TopicPartition(self._topic, partition, offset) for partition, offset in newest.items()]

    def _behind(self, committed: Any) -> int:
        low, high = self._consumer.get_watermark_offsets(committed, timeout=SECONDS)
        return max(high - max(committed.offset, low), 0)

    def _require_server(self) -> None:
        """After trouble and no event: is anybody there? librdkafka itself would wait for ever."""
        from confluent_kafka import KafkaException

        if self._trouble is None:
            return
        try:
            self._consumer.list_topics(timeout=2)
        except KafkaException as error:
            raise StreamUnreachableError.of(self._url, f"{self._trouble}; {error.args[0]}") from error
        self._trouble = None
