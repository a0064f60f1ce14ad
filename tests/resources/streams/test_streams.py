"""What every transport promises: in order, again until committed, never after that, whoever was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from resources.environment import PROJECT
from resources.streams import (
    MAX_EVENT_BYTES,
    EventStream,
    EventTooLargeError,
    Message,
    StreamUnreachableError,
    TopicNameError,
    UnknownTransportError,
    address,
    open_stream,
    stream_url,
)


def events(first: int, end: int) -> list[dict[str, int | str]]:
    return [{"number": number, "key": f"k{number % 3}"} for number in range(first, end)]


def numbers(messages: list[Message]) -> list[int]:
    return [orjson.loads(message.body)["number"] for message in messages]


def read_all(stream: EventStream, count: int, limit: int = 1000) -> list[Message]:
    """`count` messages, in as many reads as it takes; a broker may take seconds to give out partitions."""
    found: list[Message] = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} events came"
        found += stream.read(limit, 1.0)
    return found


@pytest.mark.parametrize("url", ["spool", "redis"], indirect=True)
def test_an_event_is_given_again_until_it_is_committed_and_never_after(url: str, topic: str) -> None:
    """Through producers, a reader that stops without a commit, one that commits a part, and another group."""
    producer = open_stream(topic, "nobody", url)
    assert producer.append(events(0, 60), key=["key"]) == 60
    reader = open_stream(topic, "readers", url)
    first = read_all(reader, 60)
    assert sorted(numbers(first)) == list(range(60))
    for key in range(3):  # events of one key stay in order
        of_key = [number for number in numbers(first) if number % 3 == key]
        assert of_key == sorted(of_key)
    assert len({message.offset for message in first}) == 60
    reader.close()

    again = open_stream(topic, "readers", url)
    given = read_all(again, 60)
    assert given == first
    assert again.lag() == 60
    again.commit(given)
    assert again.lag() == 0
    assert again.read(10, 0.0) == []
    producer.append(events(60, 65), key=["key"])
    assert sorted(numbers(read_all(again, 5))) == list(range(60, 65))
    again.close()
    producer.close()


@pytest.mark.parametrize("url", ["spool", "redis"], indirect=True)
def test_each_group_reads_everything_for_itself(url: str, topic: str) -> None:
    """A commit of one group takes nothing from another that has read before, if only in vain."""
    one, other = open_stream(topic, "one", url), open_stream(topic, "other", url)
    assert other.read(1, 0.0) == []
    one.append(events(0, 10))
    one.commit(read_all(one, 10))
    one.append(events(10, 12))
    assert numbers(other.read(100, 0.0)) == list(range(12))
    assert numbers(one.read(100, 0.0)) == [10, 11]


@pytest.mark.parametrize("url", ["spool", "redis"], indirect=True)
def test_a_batch_has_at_most_the_asked_number_of_events(url: str, topic: str) -> None:
    """However many there are, and the next batch goes on where the commit ended."""
    stream = open_stream(topic, "readers", url)
    stream.append(events(0, 1000))
    seen: list[int] = []
    while batch := stream.read(300, 0.0):
        assert len(batch) <= 300
        seen += numbers(batch)
        stream.commit(batch)
    assert seen == list(range(1000))


@pytest.mark.parametrize("url", ["spool", "redis"], indirect=True)
def test_readers_of_a_group_take_turns(url: str, topic: str) -> None:
    """A second reader is given nothing while the first has uncommitted events, and goes on after it."""
    one, other = open_stream(topic, "readers", url), open_stream(topic, "readers", url)
    one.append(events(0, 4))
    batch = one.read(2, 0.0)
    assert other.read(2, 0.05) == []
    one.commit(batch)
    assert numbers(other.read(2, 0.5)) == [2, 3]


def _killed_while_holding_events(url: str, topic: str) -> None:
    """A real reader that takes events and dies of SIGKILL before it commits."""
    program = f"""
        import os, signal, time
        from resources.streams import open_stream
        stream, found, end = open_stream({topic!r}, "readers", {url!r}), [], time.monotonic() + 30
        while len(found) < 20 and time.monotonic() < end:
            found += stream.read(100, 1.0)
        print(len(found), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (-signal.SIGKILL, "20"), ran.stderr


def test_what_a_killed_reader_held_is_given_to_the_next(url: str, topic: str) -> None:
    """Kill -9 between read and commit loses nothing; events of one key come in order, committed ones never again."""
    stream = open_stream(topic, "readers", url)
    stream.append(events(0, 20), key=["key"])
    _killed_while_holding_events(url, topic)
    given = read_all(stream, 20)
    assert sorted(numbers(given)) == list(range(20))
    for key in range(3):
        assert [number for number in numbers(given) if number % 3 == key] == list(range(key, 20, 3))
    stream.commit(given)
    assert stream.lag() == 0
    stream.append(events(20, 25), key=["key"])
    assert sorted(numbers(read_all(stream, 5))) == list(range(20, 25))
    stream.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: open_stream("t", "g", "redis://127.0.0.1:9/0"),
        lambda: open_stream("t", "g", "kafka://127.0.0.1:9?log_level=0"),
    ],
    ids=["redis", "kafka"],
)
def test_a_server_that_is_not_there_is_named(make: Callable[[], EventStream], home: Path) -> None:
    """The error says where, and never prints a password."""
    stream = make()
    with pytest.raises(StreamUnreachableError, match=r"(redis|kafka)://127.0.0.1:9 cannot be reached"):
        for _ in range(10):
            assert stream.read(10, 1.0) == []


def test_bad_urls_and_names_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what exists; a password in a URL is not repeated."""
    with pytest.raises(UnknownTransportError, match="kafka, redis, rediss, spool") as refused:
        open_stream("t", "g", "amqp://user:secret@host")
    assert "secret" not in str(refused.value)
    assert address("redis://user:secret@host:6379/0") == "redis://host:6379"
    for name in ("", "..", "a/b", "a b"):
        with pytest.raises(TopicNameError):
            open_stream(name, "g")
    with pytest.raises(EventTooLargeError):
        open_stream("t", "g").append([{"text": "x" * MAX_EVENT_BYTES}])
    assert stream_url() == f"spool:{os.environ['MLOPS_HOME']}/streams"
    monkeypatch.setenv("MLOPS_STREAM", "redis://host:6379/0")
    assert stream_url() == "redis://host:6379/0"
