"""What the year writes down as it goes: one JSON line a day, which a replay that was killed goes on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from resources.environment import home


@dataclass(frozen=True)
class Day:
    """A day as it was lived: by link the numbers of its `reports`, and in `notes` what was done to the platform."""

    day: str
    asked: int
    champion: str
    traffic: str
    reports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Journal:
    """The days so far, in order."""

    path: Path

    @classmethod
    def here(cls) -> Self:
        return cls(home() / "year.jsonl")

    def write(self, day: Day) -> None:
        with self.path.open("a+b") as lines:
            lines.truncate(self._whole())  # half a line: its writer was killed
            lines.write(json.dumps(asdict(day), default=str).encode() + b"\n")

    def _whole(self) -> int:
        """The bytes up to the end of the last whole line."""
        return self.path.read_bytes().rfind(b"\n") + 1 if self.path.exists() else 0

    def read(self) -> list[Day]:
        whole = self.path.read_bytes()[: self._whole()].splitlines() if self.path.exists() else []
        told = [json.loads(line) for line in whole]
        return [Day(**{**one, "notes": tuple(one["notes"])}) for one in told]
