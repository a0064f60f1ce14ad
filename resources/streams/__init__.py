"""Event streams: producers append events to a topic, the consumers of a group read each of them at least once.

One file a transport, with `SCHEMES` and `open(url, topic, group)`; a new transport is one new file. An event
is one JSON object. The rule that must never break: an event that was appended is given to a group again and
again, after whatever crash, until the group has committed it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import orjson
from filelock import FileLock, Timeout

from resources.environment import home

MAX_EVENT_BYTES = 256 * 1024
MAX_BATCH_BYTES = 64 * 1024 * 1024  # what a consumer holds in memory at once, however many events were asked for
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class UnknownTransportError(ValueError):
    """A stream URL has a scheme that no file here provides."""

    @classmethod
    def of(cls, url: str, known: Iterable[str]) -> Self:
        return cls(
            f"Event stream {address(url)!r} has an unknown scheme (known: {', '.join(sorted(known))}). "
            "Set MLOPS_STREAM to one of them, e.g. redis://host:6379/0, or unset it for files under MLOPS_HOME."
        )


class StreamUnreachableError(RuntimeError):
    """The stream's server does not answer; what was read and not committed will be given again."""

    @classmethod
    def of(cls, url: str, why: object) -> Self:
        return cls(
            f"The event stream at {address(url)} cannot be reached ({why}). Nothing is lost: start the server or "
            "set MLOPS_STREAM to where it is, and go on."
        )


class TopicNameError(ValueError):
    """A topic or a group that would be no file, no key and no Kafka topic."""

    @classmethod
    def of(cls, name: str) -> Self:
        return cls(f"{name!r} is no name of a topic or group (allowed: letters, digits, '.', '_', '-'; not '.', '..').")


class EventTooLargeError(ValueError):
    """An event is larger than a row can sensibly be."""

    @classmethod
    def of(cls, size: int) -> Self:
        return cls(f"An event has {size:,} bytes (at most {MAX_EVENT_BYTES:,}). Send a reference to large content.")


@dataclass(frozen=True, slots=True)
class Message:
    """An event as it lies in the stream: where, and its JSON, which nobody has looked at yet."""

    offset: str
    body: bytes


class EventStream(Protocol):
    """One topic, read on behalf of one group, which counts from its first read on: it then misses nothing."""

    def append(self, events: Iterable[Mapping[str, Any]], key: Sequence[str] = ()) -> int:
        """Add events, durable when this returns; those with equal `key` columns stay in order. Returns their count."""
        ...

    def read(self, limit: int, wait: float) -> list[Message]:
        """The next uncommitted events, at most `limit`; waits up to `wait` seconds for the first one."""
        ...

    def commit(self, messages: Sequence[Message]) -> None:
        """Never give these, which were read here, to the group again. They are dealt with everywhere."""
        ...

    def lag(self) -> int:
        """About how many events the group has not committed."""
        ...

    def close(self) -> None:
        """Give connections and turns back; uncommitted events are for the next reader."""
        ...


class Turn:
    """One reader at a time of a group, among the processes that share MLOPS_HOME; a killed one's turn ends with it.

    For transports that would hand two versions of a row to two readers at once.
    """

    def __init__(self, topic: str, group: str) -> None:
        path = home() / "ingest" / "turns" / f"{topic}.{group}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path)

    def take(self, wait: float) -> bool:
        """Whether it is ours, within `wait` seconds."""
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(timeout=wait, poll_interval=0.02)
        except Timeout:
            return False
        return True

    def give(self) -> None:
        self._lock.release(force=True)


def stream_url() -> str:
    """Where events are: MLOPS_STREAM, else files under MLOPS_HOME."""
    return os.environ.get("MLOPS_STREAM") or f"spool:{home() / 'streams'}"


def open_stream(topic: str, group: str, url: str | None = None) -> EventStream:
    """The topic on behalf of `group`. Connects when first used.

    Raises UnknownTransportError and TopicNameError.
    """
    url, known = url or stream_url(), transports()
    scheme = url.partition(":")[0]
    if scheme not in known:
        raise UnknownTransportError.of(url, known)
    stream: EventStream = import_module(known[scheme]).open(url, _named(topic), _named(group))
    return stream


def transports() -> dict[str, str]:
    """The module of each URL scheme."""
    modules = [f"{__name__}.{module.name}" for module in iter_modules(__path__)]
    return {scheme: module for module in modules for scheme in import_module(module).SCHEMES}


def encode(event: Mapping[str, Any]) -> bytes:
    """The event's JSON on one line; raises EventTooLargeError."""
    body = orjson.dumps(event)
    if len(body) > MAX_EVENT_BYTES:
        raise EventTooLargeError.of(len(body))
    return body


def address(url: str) -> str:
    """The URL without a user, a password or options: what may be printed."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else f"{parts.scheme}:{parts.path}"


def sync_directory(path: Path) -> None:
    """Make names in the directory survive a power cut, as `fsync` does for content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _named(name: str) -> str:
    if not name or name in (".", "..") or not NAME_CHARACTERS.issuperset(name):
        raise TopicNameError.of(name)
    return name
