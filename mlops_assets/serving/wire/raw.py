"""What a caller sent, read from the wire and not yet judged: rows of names and values, or a table.

Which fields it must have is a release's to say (`request.Form`); that it has rows, and a time, is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from mlops_assets.serving.wire.columns import Values

# A batch of so many rows of fifty numbers still fits MAX_BODY and is read in a few tens of milliseconds; who has more
# sends several requests, which then spread over the workers too.
MAX_ROWS = 10_000
MAX_BODY = 8 * 1024 * 1024


@dataclass(slots=True)
class Rows:
    """Some rows as objects, and the moment (UTC) they ask about."""

    rows: Sequence[dict[str, Any]]
    at: datetime

    @property
    def size(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> Sequence[Any]:
        """A value a row, None where a row lacks it."""
        return [row.get(name) for row in self.rows]


@dataclass(slots=True, frozen=True)
class Table:
    """Many rows as columns of one length, and the moment (UTC) they ask about."""

    columns: Mapping[str, Values]
    at: datetime

    @property
    def size(self) -> int:
        return next(iter(self.columns.values())).size

    def column(self, name: str) -> Sequence[Any]:
        """A value a row, None where the table lacks the column."""
        return self.columns[name].to_list() if name in self.columns else [None] * self.size


Raw: TypeAlias = Rows | Table
