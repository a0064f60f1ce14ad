"""What only Redis does: entries of dead machines, removal, a server that forgets or goes away."""

from __future__ import annotations

import time
from collections.abc import Iterator

import orjson
import pytest
import redis

from resources.streams.redis_streams import RedisStream

pytestmark = pytest.mark.usefixtures("home")


def numbers(stream: RedisStream, limit: int = 1000) -> list[int]:
    return [orjson.loads(message.body)["n"] for message in stream.read(limit, 0.0)]


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_what_a_dead_machine_held_is_claimed(redis_url: str) -> None:
    """After its entries lay idle; before that, another machine leaves them alone."""
    dead, alive = RedisStream(redis_url, "t", "g", "dead"), RedisStream(redis_url, "t", "g", "alive")
    dead.append([{"n": number} for number in range(5)])
    assert numbers(dead) == list(range(5))
    assert numbers(alive) == []
    heir = RedisStream(redis_url, "t", "g", "heir", claim_after=0.0)
    batch = heir.read(100, 0.0)
    assert [orjson.loads(message.body)["n"] for message in batch] == list(range(5))
    heir.commit(batch)
    assert heir.lag() == 0


def test_entries_are_removed_when_every_group_has_acknowledged_them(redis_url: str, raw: redis.Redis) -> None:
    """Not before: neither what a slow group has not read nor what it has read and not acknowledged."""
    fast, slow = RedisStream(redis_url, "t", "fast"), RedisStream(redis_url, "t", "slow")
    fast.append([{"n": number} for number in range(600)])
    held = slow.read(100, 0.0)
    fast.commit(fast.read(600, 0.0))
    assert raw.xlen("mlops:stream:t") == 600
    slow.commit(held[:50])
    assert raw.xlen("mlops:stream:t") == 550
    assert numbers(slow) == list(range(50, 100))


def test_entries_that_somebody_deleted_hold_nobody_up(redis_url: str, raw: redis.Redis) -> None:
    """They are acknowledged, for there is nothing to deal with; an entry of another form comes with an empty body."""
    stream = RedisStream(redis_url, "t", "g")
    stream.append([{"n": 0}, {"n": 1}])
    first = stream.read(10, 0.0)
    raw.xdel("mlops:stream:t", first[0].offset)
    raw.xadd("mlops:stream:t", {"other": "form"})
    assert numbers(stream) == [1]
    stream.commit(first[1:])
    assert [message.body for message in stream.read(10, 0.0)] == [b""]
    assert stream.lag() == 1


def test_a_redis_that_lost_its_memory_is_gone_on_with(redis_url: str, raw: redis.Redis) -> None:
    """The group is made again; what is appended then is read."""
    stream = RedisStream(redis_url, "t", "g")
    stream.append([{"n": 0}])
    stream.commit(stream.read(10, 0.0))
    raw.flushall()
    assert stream.lag() == 0
    stream.append([{"n": 1}])
    assert numbers(stream) == [1]


def test_a_wait_ends_when_an_event_comes_or_the_time_is_over(redis_url: str) -> None:
    """An empty stream is waited for as long as asked, and no longer."""
    stream = RedisStream(redis_url, "t", "g")
    started = time.monotonic()
    assert stream.read(10, 0.2) == []
    assert 0.19 <= time.monotonic() - started < 5
