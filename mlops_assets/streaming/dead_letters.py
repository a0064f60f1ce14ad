"""Where refused events lie: a line of JSON each, with its offset and the reason, for somebody to mend and send again.

    <home>/ingest/<team>/<source>.dead.jsonl

An event that is given again is not written down twice.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from mlops_assets.declarations import Source
from mlops_assets.streaming.events import Refused
from resources.environment import home

TAIL_BYTES = 16 * 1024 * 1024  # what is looked through for an event that is given again
HEAD = b'{"offset":"'


def dead_letter_path(source: Source) -> Path:
    return home() / "ingest" / source.team / f"{source.name}.dead.jsonl"


def bury(source: Source, refused: Sequence[Refused]) -> int:
    """Write down the refused events, durable when this returns; returns how many were new. One caller at a time."""
    if not refused:
        return 0
    path = dead_letter_path(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    known = _offsets(path)
    lines = [_line(letter) for letter in refused if letter.message.offset.encode() not in known]
    with path.open("ab") as file:
        file.write(b"".join(lines))
        file.flush()
        os.fsync(file.fileno())
    return len(lines)


def _line(letter: Refused) -> bytes:
    told: dict[str, Any] = {
        "offset": letter.message.offset,
        "reason": letter.reason,
        "event": letter.message.body.decode(errors="replace"),
        "refused_at": datetime.now(UTC),
    }
    return orjson.dumps(told) + b"\n"


def _offsets(path: Path) -> set[bytes]:
    """The offsets of the last lines; a line that was cut short is removed first."""
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            file.truncate(size - len(tail) + whole)
    return {
        line[len(HEAD) : line.index(b'"', len(HEAD))] for line in tail[:whole].splitlines() if line.startswith(HEAD)
    }
