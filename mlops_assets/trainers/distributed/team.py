"""How the workers of one fit share its rows: each takes its part of every batch, and a step is the whole batch's.

Workers average their gradients as if their parts were equally large; the weight of a part makes up for that, so that
the average is the gradient of the batch's mean loss also where it cannot be divided evenly, as the last one seldom can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Part(NamedTuple):
    """One worker's rows of a batch, [start, stop) of an epoch, and what its mean loss counts."""

    start: int
    stop: int
    weight: float

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Team:
    """The `size` workers of a fit of `rows` rows, and which of them this one is."""

    rank: int = 0
    size: int = 1
    rows: int = 0

    @property
    def leads(self) -> bool:
        """It alone writes what the others need not write too."""
        return self.rank == 0

    def parts(self, batch: int) -> list[Part]:
        """This worker's part of each batch of an epoch; those of one batch differ by at most a row."""
        found = []
        for start in range(0, self.rows, batch):
            rows = min(batch, self.rows - start)
            mine = self.slice(rows)
            found.append(Part(start + mine.start, start + mine.stop, (mine.stop - mine.start) / rows * self.size))
        return found

    def slice(self, rows: int) -> slice:
        """Which of so many rows are this worker's."""
        return slice(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)


class Share:
    """Rows in a file, of which an epoch takes this worker's alone: `rows[order]` are those of its parts, in order."""

    def __init__(self, rows: np.ndarray, team: Team, batch: int) -> None:
        import numpy as np

        self._rows = rows
        places = [np.arange(part.start, part.stop) for part in team.parts(batch)]
        self._mine = np.concatenate(places)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, order: np.ndarray) -> Any:
        return self._rows[order[self._mine]]
