"""A store that goes away costs nobody more than a moment, and is used again as soon as it is back."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.serving.guarded_store import AGAIN_SECONDS, PROBE_SECONDS, WITHIN_SECONDS, GuardedStore
from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore, TableRead, UnknownStoreError

TABLE, KEY = "flights__weather", ("EWR",)
READS = [TableRead(TABLE, ("temp",))]
NOON = int(datetime(2013, 4, 1, 12, tzinfo=UTC).timestamp() * 1_000_000)
SLACK = 0.15  # of a shared machine
AT_ONCE = 0.05


@pytest.fixture
def guard() -> Iterator[Callable[[str], GuardedStore]]:
    made: list[GuardedStore] = []

    def make(url: str) -> GuardedStore:
        made.append(GuardedStore.at(url))
        return made[-1]

    yield make
    for store in made:
        store.close()


def put(url: str, temp: float) -> None:
    with closing(PackedStore.open(url)) as store:
        store.write(TABLE, [(KEY, NOON, {"temp": temp})])


def read(store: GuardedStore) -> float | None:
    """The one value, read as an endpoint does."""
    ((found,),) = store.reader(READS).read([[KEY]])
    return found and found[1][0]


def seconds_to_fail(store: GuardedStore) -> float:
    began = time.perf_counter()
    with pytest.raises(OnlineStoreUnavailableError):
        read(store)
    return time.perf_counter() - began


def answers(store: GuardedStore) -> bool:
    try:
        read(store)
    except OnlineStoreUnavailableError:
        return False
    return True


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_store_that_is_there_is_read(guard: Callable[[str], GuardedStore], redis: Any) -> None:
    """The guard stands in nobody's way, and a probe now and then changes nothing."""
    put(redis.url, 50.0)
    store = guard(redis.url)
    assert read(store) == 50.0
    time.sleep(PROBE_SECONDS * 1.2)
    assert read(store) == 50.0


def test_a_dead_redis_fails_at_once_and_comes_back_by_itself(guard: Callable[[str], GuardedStore], redis: Any) -> None:
    """Whoever asks while it is away is told in no time; once it is back, with other rows, those are read."""
    put(redis.url, 50.0)
    store = guard(redis.url)
    reader = store.reader(READS)
    assert reader.read([[KEY]])[0][0] is not None
    redis.kill()
    assert seconds_to_fail(store) < 2 * WITHIN_SECONDS + SLACK
    assert max(seconds_to_fail(store) for _ in range(20)) < AT_ONCE
    redis.start()
    put(redis.url, 60.0)
    eventually(lambda: answers(store), seconds=AGAIN_SECONDS * 5)
    assert reader.read([[KEY]])[0][0] == (NOON, (60.0,))


def test_a_redis_that_was_restarted_between_two_requests_costs_none(
    guard: Callable[[str], GuardedStore], redis: Any
) -> None:
    """A connection that died is made anew: nobody is refused for a server that is there."""
    store = guard(redis.url)
    assert read(store) is None
    redis.kill()
    redis.start()
    if answers(store):  # else a probe fell into the gap and finds it back within a moment
        return
    eventually(lambda: answers(store), seconds=AGAIN_SECONDS * 5)


def test_a_hanging_redis_is_waited_for_once(guard: Callable[[str], GuardedStore], redis: Any) -> None:
    """One that takes connections and does not answer: the first waits a quarter of a second, the next not at all."""
    store = guard(redis.url)
    assert read(store) is None
    redis.process.send_signal(signal.SIGSTOP)
    try:
        assert seconds_to_fail(store) < WITHIN_SECONDS + SLACK
        assert max(seconds_to_fail(store) for _ in range(20)) < AT_ONCE
    finally:
        redis.process.send_signal(signal.SIGCONT)
    eventually(lambda: answers(store), seconds=AGAIN_SECONDS * 10)


def test_its_absence_is_mostly_found_before_a_request_meets_it(
    guard: Callable[[str], GuardedStore], redis: Any
) -> None:
    """A probe every second: even the first request after a quiet while does not wait."""
    store = guard(redis.url)
    redis.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(PROBE_SECONDS + WITHIN_SECONDS + 2 * SLACK)
        assert seconds_to_fail(store) < AT_ONCE
    finally:
        redis.process.send_signal(signal.SIGCONT)


def test_a_process_starts_without_its_store(guard: Callable[[str], GuardedStore], redis: Any) -> None:
    """In half a second at most; the store may come later."""
    redis.kill()
    began = time.perf_counter()
    store = guard(redis.url)
    assert time.perf_counter() - began < 2 * WITHIN_SECONDS + SLACK
    assert seconds_to_fail(store) < AT_ONCE
    redis.start()
    eventually(lambda: answers(store))


def test_an_sqlite_file_that_is_missing_is_no_empty_store(guard: Callable[[str], GuardedStore], tmp_path: Path) -> None:
    """An endpoint that made one would answer with "no row" for every key, as if there were none; it waits for it."""
    path = tmp_path / "feast" / "online_store.db"
    store = guard(f"sqlite:///{path}")
    assert seconds_to_fail(store) < AT_ONCE
    assert not path.exists()
    put(f"sqlite:///{path}", 50.0)
    eventually(lambda: answers(store))
    assert read(store) == 50.0


def test_an_sqlite_file_that_was_replaced_is_read_anew(guard: Callable[[str], GuardedStore], tmp_path: Path) -> None:
    """An open connection would go on reading the deleted one, and never see a row again."""
    path = tmp_path / "online_store.db"
    put(f"sqlite:///{path}", 50.0)
    store = guard(f"sqlite:///{path}")
    assert read(store) == 50.0
    for file in tmp_path.glob("online_store.db*"):
        file.unlink()
    eventually(lambda: not answers(store))
    put(f"sqlite:///{path}", 60.0)
    eventually(lambda: answers(store) and read(store) == 60.0)


def test_a_locked_sqlite_file_is_not_waited_for(guard: Callable[[str], GuardedStore], tmp_path: Path) -> None:
    """Half a minute of patience is right for a publication, not for a request."""
    path = tmp_path / "online_store.db"
    put(f"sqlite:///{path}", 50.0)
    with closing(sqlite3.connect(path)) as gone:
        gone.execute("PRAGMA journal_mode = DELETE")  # as after a copy or a restore: readers wait for writers
    store = guard(f"sqlite:///{path}")
    assert read(store) == 50.0
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert seconds_to_fail(store) < WITHIN_SECONDS + SLACK
        assert seconds_to_fail(store) < AT_ONCE
        other.execute("ROLLBACK")
    eventually(lambda: answers(store))


def test_a_file_that_is_no_database_is_a_store_that_is_away(
    guard: Callable[[str], GuardedStore], tmp_path: Path
) -> None:
    """Refused as any other absence, not a crash of the process."""
    (tmp_path / "online_store.db").write_bytes(b"no database" * 1000)
    store = guard(f"sqlite:///{tmp_path / 'online_store.db'}")
    assert seconds_to_fail(store) < AT_ONCE


def test_a_store_of_an_unknown_kind_is_refused_when_the_process_starts() -> None:
    """A setting that can never work is no absence."""
    with pytest.raises(UnknownStoreError, match="Set MLOPS_ONLINE_STORE"):
        GuardedStore.at("mysql://somewhere")
