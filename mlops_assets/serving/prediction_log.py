"""The prediction log: every answer the endpoints gave, with what they used to give it.

    <root>/<team>/<model>/<pid>-<start>.jsonl     one line an answer, one file a serving process

Written off the hot path: an answer puts its rows on a bounded queue and never waits; a thread writes
them every 0.2 s, so that is the most a kill loses. `seq` counts the lines of one writer without gaps:
a missing one is a lost answer, and a reader can say so. Rows that found the queue full are not written;
the next line carries how many there were in `dropped`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.serving.plan import Looked, moment_of
from resources.environment import home

if TYPE_CHECKING:
    import polars as pl

FLUSH_SECONDS = 0.2
QUEUE_ROWS = 100_000  # about 100 MB of rows at worst
CLOCK_SECONDS = 60.0  # how far the clock of a file system may be behind the writer's
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Answered:
    """One answer as it was given; turned into a line by the writer's thread."""

    model: str
    request_id: str
    at: datetime
    release: str
    version: str
    variant: str
    keys: dict[str, Any]
    inputs: Sequence[str]
    looked: Looked
    prediction: float
    latency_ms: float = 0.0

    def line(self) -> dict[str, Any]:
        return {
            "request_id": self.request_id,
            "at": self.at,
            "release": self.release,
            "version": self.version,
            "variant": self.variant,
            "keys": self.keys,
            "inputs": dict(zip(self.inputs, self.looked.values, strict=True)),
            "event_times": {view: moment_of(us) for view, us in self.looked.event_times.items()},
            "prediction": self.prediction,
            "latency_ms": round(self.latency_ms, 3),
            "fallbacks": [asdict(fallback) for fallback in self.looked.fallbacks],
        }


class NoLog:
    """Keeps nothing; for a Bento served without the platform."""

    def write(self, rows: Sequence[Answered]) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Spool:
    """The file of one model in this process, and how far it is counted."""

    path: Path
    seq: int = 0
    size: int = 0
    dropped: int = 0


class PredictionWriter:
    """Takes answers from any thread and writes them in its own, in the order they were given."""

    def __init__(self, root: Path, queue_rows: int = QUEUE_ROWS) -> None:
        self._root = root
        self._bound = queue_rows
        self._name = f"{os.getpid()}-{time.time_ns() // 1000}"
        self._queue: deque[Answered] = deque()
        self._spools: dict[str, _Spool] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def write(self, rows: Sequence[Answered]) -> None:
        """Queue the rows of one answer; never waits. Rows beyond the bound are counted, not kept."""
        with self._lock:
            room = max(self._bound - len(self._queue), 0)
            self._queue.extend(rows[:room])
            for row in rows[room:]:
                self._spool(row.model).dropped += 1

    def close(self) -> None:
        """Write what is queued and stop."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            rows, self._queue = self._queue, deque()
        by_model: dict[str, list[Answered]] = {}
        for row in rows:
            by_model.setdefault(row.model, []).append(row)
        for model, answered in by_model.items():
            self._append(model, answered)

    def _append(self, model: str, rows: list[Answered]) -> None:
        import orjson

        with self._lock:
            spool = self._spool(model)
            dropped, spool.dropped = spool.dropped, 0
        now = moment_of(time.time_ns() // 1000)
        heads = [{"seq": spool.seq + index, "writer": self._name, "logged_at": now} for index in range(len(rows))]
        heads[0]["dropped"] = dropped
        lines = [orjson.dumps({**head, **row.line()}) for head, row in zip(heads, rows, strict=True)]
        try:
            with spool.path.open("ab") as file:
                file.write(b"\n".join(lines) + b"\n")
        except OSError as error:  # a full disk must not end the log: cut what was half-written and go on counting
            logger.warning("%d answers of %s were not logged: %s", len(rows), model, error)
            if spool.path.exists():
                os.truncate(spool.path, spool.size)
            spool.dropped += dropped + len(rows)
        else:
            spool.seq += len(rows)
            spool.size = spool.path.stat().st_size

    def _spool(self, model: str) -> _Spool:
        if model not in self._spools:
            folder = self._root / model
            folder.mkdir(parents=True, exist_ok=True)
            self._spools[model] = _Spool(folder / f"{self._name}.jsonl")
        return self._spools[model]


@dataclass(frozen=True)
class Gaps:
    """What the log of one model lacks: missing `seq` by writer, and answers that found the queue full."""

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

    def read(self, model: str, day: date) -> pl.DataFrame:
        """The answers about one UTC day (of `at`), each once, ordered by `at`; no rows gives an empty frame.

        Columns: those of `_columns` (event_times and fallbacks are JSON text), then the join keys and the
        inputs by name. An input that has the name of one of them is left out.
        """
        return _table(line for line in self._lines(model) if line["at"].startswith(day.isoformat()))

    def since(self, model: str, moment: datetime) -> pl.DataFrame:
        """The answers written down at or after a moment, in the same form; reads only files written to since then."""
        lines = self._lines(model, moment.timestamp() - CLOCK_SECONDS)
        return _table(line for line in lines if datetime.fromisoformat(line["logged_at"]) >= moment)

    def gaps(self, model: str) -> Gaps:
        """What is missing from the log of a model."""
        seen: dict[str, set[int]] = {}
        dropped = 0
        for line in self._lines(model):
            seen.setdefault(line["writer"], set()).add(line["seq"])
            dropped += line.get("dropped", 0)
        missing = {writer: sorted(set(range(max(numbers))) - numbers) for writer, numbers in seen.items()}
        return Gaps({writer: numbers for writer, numbers in missing.items() if numbers}, dropped)

    def days(self, model: str) -> list[date]:
        """The UTC days that have answers, ascending."""
        return sorted({date.fromisoformat(line["at"][:10]) for line in self._lines(model)})

    def find(self, request_id: str, model: str) -> list[dict[str, Any]]:
        """The lines of one request, oldest first: the receipt of an answer."""
        return [line for line in self._lines(model) if line["request_id"] == request_id]

    @property
    def _root(self) -> Path:
        return self.root or home() / "predictions"

    def _lines(self, model: str, changed_since: float = 0.0) -> Iterator[dict[str, Any]]:
        """Every whole line; a half-written one (its writer was killed) was never an acknowledged record."""
        import orjson

        for path in sorted((self._root / model).glob("*.jsonl")):
            if path.stat().st_mtime < changed_since:
                continue
            with path.open("rb") as file:
                for line in file:
                    try:
                        yield orjson.loads(line)
                    except orjson.JSONDecodeError:
                        continue  # its seq is missing, so `gaps` names it unless it was the last


def _table(lines: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Each answer once, ordered by `at`; no lines give an empty frame."""
    import polars as pl

    columns, flat = _columns(), [_flat(line) for line in lines]
    times = pl.col("at", "logged_at").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC")
    frame = pl.DataFrame(flat, infer_schema_length=None) if flat else pl.DataFrame(schema=columns)
    typed = frame.with_columns(pl.col(name).cast(dtype) for name, dtype in columns.items()).with_columns(times)
    return typed.unique(["writer", "seq", "request_id"]).sort("at", "writer", "seq")


def _columns() -> dict[str, pl.DataType]:
    """What every line has, in the order of a table; times still as text."""
    import polars as pl

    texts = ("request_id", "at", "logged_at", "release", "version", "variant", "writer", "event_times", "fallbacks")
    return {
        **dict.fromkeys(texts, pl.String()),
        "prediction": pl.Float64(),
        "latency_ms": pl.Float64(),
        "seq": pl.Int64(),
    }


def _flat(line: dict[str, Any]) -> dict[str, Any]:
    import orjson

    texts = {name: orjson.dumps(line[name]).decode() for name in ("event_times", "fallbacks")}
    head = {**line, **texts}
    columns = {**line["keys"], **line["inputs"]}
    return {**{name: head[name] for name in _columns()}, **{k: v for k, v in columns.items() if k not in head}}
