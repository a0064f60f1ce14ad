"""The prediction log: every answer the endpoints gave, with what they used to give it.

    <root>/<team>/<model>/<day>/<pid>-<start>.jsonl           one line an answer, one file a serving process and day
    <root>/<team>/<model>/<day>/<pid>-<start>.shadow.jsonl    what a shadow would have answered; read when asked for
    ... .jsonl.gz                                             the same, put away when it was not written to for a week

The day is the UTC day asked about (`at`), so that a day is read without the others. `seq` counts the lines of a file
without gaps: a missing one is a lost answer, and a reader can say so. Answers that found the queue full, or the disk,
are not written; a line of its own says how many (`dropped`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.serving.prediction_log import lines as prediction_lines
from mlops_assets.serving.prediction_log.writer import QUEUE_ROWS, SHADOW, NoLog, PredictionWriter
from resources.environment import home

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = ["Gaps", "NoLog", "PredictionLog", "PredictionWriter"]

CLOCK_SECONDS = 60.0  # how far the clock of a file system, or one set right, may be behind the writer's
SUFFIXES = (".jsonl", f".jsonl{prediction_lines.PUT_AWAY}")
DAY = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"


@dataclass(frozen=True)
class Gaps:
    """What the log of one model lacks: missing `seq` by file, and answers that found the queue full."""

    missing: dict[str, list[int]] = field(default_factory=dict)
    dropped: int = 0

    @property
    def lines(self) -> int:
        return sum(map(len, self.missing.values()))


@dataclass(frozen=True)
class PredictionLog:
    """The logs under `root`; without one, those of MLOPS_HOME, found when used."""

    root: Path | None = None

    def writer(self, queue_rows: int = QUEUE_ROWS) -> PredictionWriter:
        """A writer for this process."""
        return PredictionWriter(self._root, queue_rows)

    def read(
        self, model: str, day: date, types: Mapping[str, pl.DataType] | None = None, *, shadow: bool = False
    ) -> pl.DataFrame:
        """The answers about one UTC day (of `at`), each once, ordered by `at`; no rows gives an empty frame.

        Columns: those of `prediction_lines.columns` (event_times, fallbacks and outputs are JSON text), then the join
        keys and the inputs by name, or those of `types` alone. An input that has the name of one of them is left out.
        """
        return _table(self.chunks(model, day, types, shadow=shadow), types)

    def chunks(
        self, model: str, day: date, types: Mapping[str, pl.DataType] | None = None, *, shadow: bool = False
    ) -> Iterator[pl.DataFrame]:
        """The same by file and line, some ten thousand at a time; a line that is there twice comes twice."""
        for path in self.files(model, day, shadow=shadow):
            for lines in prediction_lines.chunks(path):
                yield prediction_lines.answers(lines, types)

    def since(
        self,
        model: str,
        moment: datetime,
        types: Mapping[str, pl.DataType] | None = None,
        *,
        shadow: bool = False,
    ) -> pl.DataFrame:
        """The answers written down at or after a moment, in the same form; reads only what was written since then."""
        import polars as pl

        earlier = moment.timestamp() - CLOCK_SECONDS
        frames = [
            prediction_lines.answers(lines, types).filter(pl.col("logged_at") >= moment)
            for path in self.files(model, shadow=shadow)
            if path.stat().st_mtime >= earlier
            for lines in prediction_lines.chunks(path, prediction_lines.start_of(path, earlier))
        ]
        return _table(frames, types)

    def gaps(self, model: str, day: date | None = None, *, shadow: bool = False) -> Gaps:
        """What is missing from the log of a model, of one day or of all."""
        import numpy as np

        seen: dict[str, list[np.ndarray]] = {}
        dropped: Counter[str] = Counter()
        for path in self.files(model, day, shadow=shadow):
            for lines in prediction_lines.chunks(path):
                found = prediction_lines.numbers(lines)
                name = str(path.relative_to(self._root / model)).removesuffix(prediction_lines.PUT_AWAY)
                seen.setdefault(name, []).append(found["seq"].to_numpy())
                dropped[name] += int(found["dropped"].sum())
        missing = {name: _holes(np.concatenate(numbers)) for name, numbers in seen.items()}
        return Gaps({name: numbers for name, numbers in missing.items() if numbers}, dropped.total())

    def days(self, model: str) -> list[date]:
        """The UTC days that have answers, ascending."""
        return sorted({date.fromisoformat(path.parent.name) for path in self.files(model)})

    def find(self, request_id: str, model: str | None = None, *, shadow: bool = False) -> list[dict[str, Any]]:
        """The lines of one request as they were written, with their `model`; of the newest day first."""
        return [
            {"model": f"{path.parts[-4]}/{path.parts[-3]}", **line}
            for path in reversed(self.files(model or "*/*", shadow=shadow))
            for line in prediction_lines.lines_with(path, request_id)
        ]

    def open_files(self, model: str, *, shadow: bool = False) -> list[Path]:
        """Those that may still be written to."""
        return [path for path in self.files(model, shadow=shadow) if path.suffix != prediction_lines.PUT_AWAY]

    def put_away(self, model: str, before: datetime) -> int:
        """Compress the files that nobody wrote to since; how many they were."""
        files = [*self.open_files(model), *self.open_files(model, shadow=True)]
        old = [path for path in files if path.stat().st_mtime < before.timestamp()]
        for path in old:
            prediction_lines.put_away(path)
        return len(old)

    def models(self) -> list[str]:
        """The models that answered, sorted."""
        return sorted({"/".join(path.parts[-4:-2]) for path in self.files("*/*")})

    def files(self, model: str, day: date | None = None, *, shadow: bool = False) -> list[Path]:
        """The files of a model, by day and writer."""
        pattern = f"{model}/{day.isoformat() if day else DAY}"
        found = chain.from_iterable(self._root.glob(f"{pattern}/*{name}") for name in SUFFIXES)
        wanted = (path for path in found if (SHADOW in path.name) is shadow)
        return sorted(wanted, key=lambda path: path.parts[-2:])

    @property
    def _root(self) -> Path:
        return self.root or home() / "predictions"


def _table(frames: Iterable[pl.DataFrame], types: Mapping[str, pl.DataType] | None) -> pl.DataFrame:
    """Each answer once, ordered by `at`. A file put back from a copy doubles nothing."""
    import polars as pl

    none = pl.DataFrame(schema={**prediction_lines.columns(), **(types or {})})
    whole = pl.concat([none, *frames], how="diagonal_relaxed")
    return whole.unique(["writer", "seq", "at", "request_id"]).sort("at", "writer", "seq")


def _holes(numbers: np.ndarray) -> list[int]:
    """The numbers below the greatest that are not there."""
    import numpy as np

    there = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=bool)
    there[numbers] = True
    return [int(number) for number in np.flatnonzero(~there)]
