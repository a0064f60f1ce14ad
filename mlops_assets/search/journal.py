"""The journal of a search: a line of JSON for each trial, written as it ends, in the order in which they ended.

A line holds `number`, `params`, `value` (None where there is none), `state` (COMPLETE, PRUNED or FAIL), `started_at`,
`seconds`; of a complete trial also `learned` and `metrics`, of a pruned one `pruned_at`, of one that could have been
pruned the `scores` of its rounds and the `rungs` that it reached. One process writes it; those who try read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlops_assets.checkpoints import publish

COMPLETE, PRUNED, FAIL = "COMPLETE", "PRUNED", "FAIL"

Line = dict[str, Any]


def journalled(journal: Path) -> list[Line]:
    """The lines by number, none where there is no journal; the last of a search that was killed may be half a line."""
    if not journal.exists():
        return []
    found = []
    for line in journal.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return sorted(found, key=lambda line: int(line["number"]))


def ended(journal: Path) -> list[Line]:
    """The trials that need not be run again."""
    return [line for line in journalled(journal) if line["state"] == PRUNED or "learned" in line]


def note(journal: Path, line: Line) -> None:
    with journal.open("a") as file:
        file.write(json.dumps(line) + "\n")


def keep(journal: Path, lines: Iterable[Line]) -> None:
    """These lines, and no others."""
    publish(journal, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
