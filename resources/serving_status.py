"""What each serving process says that it answers with, beside the record that it follows.

    <releases root>/<team>/<model>.serving/<host>-<pid>.json    revision, serving, refused, at

A process writes its file when what it serves changes and every few seconds, so that an old one is of a process that
is gone; it takes its file away when it ends. They are for people, for an asset that waits until everybody has followed,
and for a process that cannot load what others answer with. Imports no Dagster: the serving process writes them.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

STALE = timedelta(seconds=60)


@dataclass(frozen=True)
class ServingStatus:
    """One process: the revision it follows, the variants that answer in it, and why a release does not."""

    host: str
    pid: int
    revision: int | None
    serving: tuple[Mapping[str, Any], ...]
    refused: tuple[Mapping[str, str], ...]
    at: datetime

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        return cls(
            said["host"],
            said["pid"],
            said["revision"],
            tuple(said["serving"]),
            tuple(said["refused"]),
            datetime.fromisoformat(said["at"]),
        )

    @property
    def process(self) -> str:
        return f"{self.host}-{self.pid}"


def statuses(record: Path) -> list[ServingStatus]:
    """What the processes that are alive say of the model with this record (`ReleaseStore.path`), by host and pid.

    One on this host is alive while its process is; one elsewhere while it has said something in the last minute.
    """
    now = datetime.now(UTC)
    found = [status for path in directory(record).glob("*.json") if (status := _read(path))]
    return sorted((one for one in found if _lives(one, now)), key=lambda one: (one.host, one.pid))


def directory(record: Path) -> Path:
    return record.with_suffix(".serving")


class StatusFile:
    """What this process says of one model."""

    def __init__(self, record: Path) -> None:
        self._host, self._pid = host(), os.getpid()
        self._path = directory(record) / f"{self._host}-{self._pid}.json"

    def write(self, said: Mapping[str, Any]) -> None:
        """Publish `revision`, `serving` and `refused` by rename. OSError where there is no writing."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        beside = self._path.with_suffix(".tmp")
        text = json.dumps({"host": self._host, "pid": self._pid, **said, "at": at})
        try:
            beside.write_text(text)
        except FileNotFoundError:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
        os.replace(beside, self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Take away what killed processes of this host left behind."""
        for path in _files_of(self._path.parent, self._host):
            status = _read(path)
            if status is None or not _runs(status.pid):
                path.unlink(missing_ok=True)


def host() -> str:
    """This machine's name as far as it can be part of a file's."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"


def _files_of(where: Path, name: str) -> Iterator[Path]:
    return (path for path in where.glob("*.json") if path.name.startswith(f"{name}-"))


def _read(path: Path) -> ServingStatus | None:
    """None for one that was taken away meanwhile, or is no status."""
    try:
        return ServingStatus.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lives(status: ServingStatus, now: datetime) -> bool:
    return now - status.at < STALE and (status.host != host() or _runs(status.pid))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
