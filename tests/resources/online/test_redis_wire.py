"""A Redis that goes away in mid-read and comes back is asked again; one that stays away is told as such, in time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from resources.online import redis_wire
from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore, TableRead
from resources.online.redis_wire import RedisRefusedError, RedisWire, packet

if TYPE_CHECKING:
    from conftest import RedisServer

ROW = (("EWR",), 5, {"temp": 1.5})
READ = [TableRead("flights__weather", ("temp",))]


def test_commands_are_answered_in_order(redis_url: str) -> None:
    wire = RedisWire(redis_url)
    packets = [packet(("SET", "a", b"\x00\xff")), packet(("GET", "a"), ("GET", "b"), ("STRLEN", "a"))]
    assert wire.ask(lambda: packets) == [b"OK", b"\x00\xff", None, 2]
    wire.close()


def test_a_refusal_is_not_asked_again(redis_url: str) -> None:
    """And the connection is good for the next question."""
    wire = RedisWire(redis_url)
    with pytest.raises(RedisRefusedError, match=r"Redis at redis://127\.0\.0\.1:\d+/0 refused: ERR unknown command"):
        wire.ask(lambda: [packet(("NONSENSE",), ("PING",))])
    assert wire.ask(lambda: [packet(("PING",))]) == [b"PONG"]
    wire.close()


def test_no_password_is_shown() -> None:
    assert RedisWire("redis://user:secret@cache:6380/2").where == "redis://cache:6380/2"


def test_a_redis_that_comes_back_is_read_without_an_error(mortal_redis: RedisServer) -> None:
    """It was restarted between two reads, so that the reader's connection is dead; what it held is gone with it."""
    store = PackedStore.open(mortal_redis.url)
    reader = store.reader(READ)
    store.write("flights__weather", [ROW])
    assert reader.read([[("EWR",)]]) == [[(5, (1.5,))]]
    mortal_redis.kill()
    mortal_redis.start()
    assert reader.read([[("EWR",)]]) == [[None]]
    store.write("flights__weather", [ROW])
    assert reader.read([[("EWR",)]]) == [[(5, (1.5,))]]
    store.close()


def test_a_redis_that_comes_back_in_mid_read_answers(mortal_redis: RedisServer) -> None:
    store = PackedStore.open(mortal_redis.url)
    store.write("flights__weather", [ROW])
    mortal_redis.kill()
    back = threading.Thread(target=mortal_redis.start)
    back.start()
    assert store.reader(READ).read([[("EWR",)]]) == [[None]]
    back.join()
    store.close()


def test_a_redis_that_stays_away_is_an_error_of_its_own(
    mortal_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_wire, "PAUSE", 0.001)
    store = PackedStore.open(mortal_redis.url)
    reader = store.reader(READ)
    mortal_redis.kill()
    for use in (
        lambda: reader.read([[("EWR",)]]),
        lambda: store.write("flights__weather", [ROW]),
        lambda: store.count("flights__weather"),
    ):
        with pytest.raises(OnlineStoreUnavailableError, match=r"redis://127\.0\.0\.1:\d+/0 did not answer.*repeat"):
            use()
    mortal_redis.start()
    assert store.write("flights__weather", [ROW]) == 1
    assert reader.read([[("EWR",)]]) == [[(5, (1.5,))]]
    store.close()
