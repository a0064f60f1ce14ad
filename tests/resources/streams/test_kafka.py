"""What only Kafka does: partitions that change hands while a batch is in somebody's."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from resources.streams import EventStream, Message
from resources.streams.kafka import KafkaStream


def step(stream: EventStream, seen: set[int]) -> None:
    """Read what is there and commit it."""
    batch = stream.read(100, 0.1)
    seen |= {orjson.loads(message.body)["n"] for message in batch}
    stream.commit(batch)


def test_a_rebalance_in_mid_batch_loses_nothing(kafka_url: str, topic: str, home: Path) -> None:
    """A second reader joins while the first has uncommitted events; in the end each event is committed by either."""
    one, other = KafkaStream(kafka_url, topic, "readers"), KafkaStream(kafka_url, topic, "readers")
    one.append([{"n": number} for number in range(40)], key=["n"])
    held, seen, deadline = list[Message](), set[int](), time.monotonic() + 60
    while len(held) < 40:
        held += one.read(100, 0.5)
    with ThreadPoolExecutor(1) as pool:
        joining = pool.submit(step, other, seen)
        one.commit(held)
        while not joining.done():
            step(one, seen)
    other.append([{"n": number} for number in range(40, 80)], key=["n"])
    shares: list[int] = []
    while not (seen >= set(range(40, 80)) and one.lag() + other.lag() == 0 and sorted(shares) == [2, 2]):
        assert time.monotonic() < deadline, f"{len(seen)} events were seen, the readers have {shares} partitions"
        for reader in (one, other):
            step(reader, seen)
        shares = [len(reader._consumer.assignment()) for reader in (one, other)]
    one.close()
    other.close()
