"""Events in files, for one machine: no server, durable when `append` returns, readable with `tail -f`.

    <root>/<topic>/<offset of its first byte, 20 digits>.jsonl     a segment: an event a line
    <root>/<topic>/groups/<group>.offset                           the byte after the last committed event

An offset counts bytes from the beginning of the topic. A line without its end is an append that was cut short:
nobody reads it, and the next append removes it. A segment is deleted once every group has committed all of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from resources.streams import MAX_BATCH_BYTES, Message, Turn, encode, sync_directory

SCHEMES = ("spool",)
SEGMENT_BYTES = 64 * 1024 * 1024
POLL_SECONDS = 0.02


def open(url: str, topic: str, group: str) -> Spool:  # noqa: A001  called as `spool.open`
    return Spool(Path(url.removeprefix("spool:")).expanduser(), topic, group)


class Spool:
    """A topic under `root`, read on behalf of `group` by one process at a time."""

    def __init__(self, root: Path, topic: str, group: str, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory, self._segment_bytes = root / topic, segment_bytes
        self._offset_file = self._directory / "groups" / f"{group}.offset"
        self._turn = Turn(topic, group)
        self._bytes_per_event = 100.0
        self._offset_file.parent.mkdir(parents=True, exist_ok=True)

    def append(self, events: Iterable[Mapping[str, Any]], key: Sequence[str] = ()) -> int:  # noqa: ARG002  all is in order
        lines = [encode(event) + b"\n" for event in events]
        with FileLock(self._directory / ".append.lock"), self._last_segment().open("ab") as segment:
            segment.write(b"".join(lines))
            segment.flush()
            os.fsync(segment.fileno())
        return len(lines)

    def read(self, limit: int, wait: float) -> list[Message]:
        deadline = time.monotonic() + wait
        if not self._turn.take(wait):
            return []
        if not self._offset_file.exists():
            self._publish_offset(str(self._begin()))  # from now on nothing is deleted before this group had it
        while not (messages := self._after(self._committed(), limit)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if not messages:
            self._turn.give()
        return messages

    def commit(self, messages: Sequence[Message]) -> None:
        if messages:
            self._publish_offset(messages[-1].offset)
        self._turn.give()

    def lag(self) -> int:
        return round((self._end() - max(self._committed(), self._begin())) / self._bytes_per_event)

    def close(self) -> None:
        self._turn.give()

    # -- segments

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob("*.jsonl"))

    def _begin(self) -> int:
        return next((_base(path) for path in self._segments()), 0)

    def _end(self) -> int:
        return max((_base(path) + path.stat().st_size for path in self._segments()[-1:]), default=0)

    def _last_segment(self) -> Path:
        """The segment to append to, which ends with a whole line; a new one when the last is full."""
        segments = self._segments()
        if segments:
            _remove_torn_line(segments[-1])
        end = self._end()
        # After a power cut a group may have read what never reached the disk: offsets are not given twice.
        start = max([end, *self._all_committed()])
        if segments and start == end and end - _base(segments[-1]) < self._segment_bytes:
            return segments[-1]
        path = self._directory / f"{start:020d}.jsonl"
        path.touch()
        sync_directory(self._directory)
        self._delete_committed(segments)
        return path

    def _delete_committed(self, segments: Sequence[Path]) -> None:
        done = min(self._all_committed(), default=0)
        for path in segments:
            if _base(path) + path.stat().st_size <= done:
                path.unlink()

    def _after(self, offset: int, limit: int) -> list[Message]:
        messages: list[Message] = []
        room = MAX_BATCH_BYTES
        for end, line in self._lines(offset):
            messages.append(Message(str(end), line[:-1]))
            room -= len(line)
            if len(messages) == limit or room <= 0:
                break
        if messages:
            self._bytes_per_event = max(1.0, (MAX_BATCH_BYTES - room) / len(messages))
        return messages

    def _lines(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """The whole lines from `offset` on, each with the offset of its end."""
        for path in self._segments():
            base = _base(path)
            if base + path.stat().st_size <= offset:
                continue
            end = max(offset, base)
            with path.open("rb") as segment:
                segment.seek(end - base)
                for line in segment:
                    if not line.endswith(b"\n"):
                        break
                    end += len(line)
                    yield end, line

    # -- offsets

    def _committed(self) -> int:
        return int(self._offset_file.read_text()) if self._offset_file.exists() else 0

    def _all_committed(self) -> list[int]:
        return [int(path.read_text()) for path in self._offset_file.parent.glob("*.offset")]

    def _publish_offset(self, offset: str) -> None:
        beside = self._offset_file.with_suffix(f".{os.getpid()}")
        with beside.open("w") as file:
            file.write(offset)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._offset_file)
        sync_directory(self._offset_file.parent)


def _base(path: Path) -> int:
    return int(path.stem)


def _remove_torn_line(path: Path) -> None:
    with path.open("rb+") as segment:
        size = end = segment.seek(0, os.SEEK_END)
        while end and segment.seek(end - 1) >= 0 and segment.read(1) != b"\n":
            end -= 1
        if end < size:
            segment.truncate(end)
