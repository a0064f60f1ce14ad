"""Writes the prediction log from a serving process: off the hot path, bounded, never waited for.

An answer to a few rows is told in bytes at once, some microseconds, and queued; a thread numbers and writes what is
queued every 0.1 s, so 0.2 s is the most a kill loses. Telling them in the thread would take as long and, since it
shares the interpreter with whoever answers, cost both as much again in waiting for their turns. Answers to many rows
are told there all the same, in short slices: their request should not wait for it. Where such rows brought their
inputs, Polars tells them column by column, in half the time and mostly without the interpreter.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson

from mlops_assets.serving.plan import moment_of

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.serving.answers import Answers

FLUSH_SECONDS = 0.1
QUEUE_ROWS = 100_000  # about 100 MB of rows at worst
FEW_ROWS = 8  # told while their request waits
SLICE_ROWS = 32  # about 0.2 ms of work, row by row
WRITTEN_ROWS = 1024  # about a megabyte
TAKEN_ROWS = 256  # of a frame become Python values, or lines, at once
ASIDE_SECONDS = 0.0002
SHADOW = ".shadow.jsonl"  # answers that nobody was given, in files of their own: no report may mix them in
logger = logging.getLogger(__name__)
day_text = lru_cache(366)(date.isoformat)
moment_text = lru_cache(1024)(lambda us: moment_of(us).isoformat())  # many rows use the same row of a view


class NoLog:
    """Keeps nothing; for a Bento served without the platform."""

    def write(self, answers: Answers) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass(slots=True)
class _Spool:
    """One file of this process: a day's answers of one model, or of its shadow, and how far it is counted."""

    path: Path
    writer: str
    seq: int = 0
    dropped: int = 0


Row = dict[str, Any]
Spooled = tuple[str, str, bool]  # model, day, is it the shadow's
Told: TypeAlias = "list[bytes] | Answers"
Queued: TypeAlias = tuple[Spooled, int, Told]


class PredictionWriter:
    """Takes answers from any thread and writes them in its own, in the order they were given."""

    def __init__(self, root: Path, queue_rows: int = QUEUE_ROWS) -> None:
        self._root = root
        self._bound = queue_rows
        self._name = f"{os.getpid()}-{time.time_ns() // 1000}"
        self._queue: list[Queued] = []
        self._rows = 0  # queued, or being written
        self._refused: Counter[Spooled] = Counter()
        self._spools: dict[Spooled, _Spool] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def write(self, answers: Answers) -> None:
        """Queue the answers to a request; never waits. Those that find no room are counted, not kept."""
        size, told = len(answers.predictions), _told(answers)
        with self._lock:
            if told is not None and self._rows + size <= self._bound:
                self._rows += size
                self._queue.append((_spooled(answers), size, told))
            else:
                self._refused[_spooled(answers)] += size

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
            queue, self._queue = self._queue, []
            refused, self._refused = self._refused, Counter()
        for spooled, size in refused.items():
            self._spool(spooled).dropped += size
        by_spool: dict[Spooled, list[Queued]] = {at: [] for at, spool in self._spools.items() if spool.dropped}
        for queued in queue:
            by_spool.setdefault(queued[0], []).append(queued)
        for spooled, some in by_spool.items():
            self._append(self._spool(spooled), some)

    def _append(self, spool: _Spool, some: list[Queued]) -> None:
        """Lines for the answers, and for how many were dropped. What cannot be written must not end the log."""
        rows, size = sum(size for _, size, _ in some), 0
        try:
            spool.path.parent.mkdir(parents=True, exist_ok=True)
            with spool.path.open("ab") as file:
                count, size = 0, file.tell()
                lines = _lines(spool, some, self._step_aside)
                while written := [*islice(lines, WRITTEN_ROWS)]:
                    file.write(b"".join(written))  # each write gives up the interpreter, and has to win it back
                    count += len(written)
        except (OSError, LookupError, TypeError, ValueError) as error:  # a full disk, or answers that are not whole
            logger.warning("%d answers are not in %s: %s", rows, spool.path, error)
            if spool.path.exists():
                os.truncate(spool.path, size)  # what was half-written
            spool.dropped += rows
        else:
            spool.seq += count
            spool.dropped = 0
        with self._lock:
            self._rows -= rows

    def _step_aside(self) -> None:
        """Let others work, unless answers would soon find no room, or nobody is left who waits."""
        if self._rows < self._bound // 4 and not self._closing.is_set():
            time.sleep(ASIDE_SECONDS)

    def _spool(self, spooled: Spooled) -> _Spool:
        spool = self._spools.get(spooled)
        if spool is None:
            model, day, shadow = spooled
            path = self._root / model / day / f"{self._name}{SHADOW if shadow else '.jsonl'}"
            spool = self._spools[spooled] = _Spool(path, self._name)
        return spool


def _lines(spool: _Spool, some: list[Queued], between: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """Each with its number in the file; `between` slices, who answers gets the interpreter."""
    end = b',"writer":"%s","seq":%%d,"logged_at":"%s"}\n' % (spool.writer.encode(), _now())
    dropped = [b'{"dropped":%d' % spool.dropped] if spool.dropped else []
    for seq, line in enumerate(
        chain(dropped, chain.from_iterable(_beginnings(told, between) for *_, told in some)), spool.seq
    ):
        yield line + end % seq


def _beginnings(told: Told, between: Callable[[], None]) -> Iterator[bytes]:
    """What is told of each answer, as it was queued or, of many rows, made now."""
    if isinstance(told, list):
        yield from told
        return
    if told.looked is None and (slices := _by_columns(told)) is not None:
        for beginnings in slices:
            yield from beginnings
            between()
        return
    for place, row in enumerate(_many(told), 1):
        yield _beginning(row)
        if place % SLICE_ROWS == 0:
            between()


def _now() -> bytes:
    return datetime.now(UTC).isoformat().encode()


def _told(answers: Answers) -> Told | None:
    """The beginnings of a few lines, many as they are; None where the answers are not whole, which fails no request."""
    if len(answers.predictions) > FEW_ROWS:
        return answers
    try:
        rows = zip(range(len(answers.predictions)), answers.inputs.rows(), strict=True)
        return [_beginning(_row(answers, place, values)) for place, values in rows]
    except (LookupError, TypeError, ValueError) as error:
        logger.warning("An answer of %s is not logged: %s", answers.model, error)
        return None


def _beginning(row: Row) -> bytes:
    """A line without its end: the number in the file, and who writes it. One that cannot be told costs no other."""
    try:
        return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)[:-1]
    except TypeError as error:
        logger.warning("The answer to %r is not logged: %s", row.get("request_id"), error)
        return b'{"dropped":1'


def _spooled(answers: Answers) -> Spooled:
    return answers.model, day_text(answers.question.at.date()), answers.variant.role == "shadow"


def _many(answers: Answers) -> Iterator[Row]:
    """A slice of a frame becomes Python values at a time."""
    size = len(answers.predictions)
    for start in range(0, size, TAKEN_ROWS):
        places = range(start, min(start + TAKEN_ROWS, size))
        for place, values in zip(places, answers.inputs.take(places).rows(), strict=True):
            yield _row(answers, place, values)


def _by_columns(answers: Answers) -> Iterator[list[bytes]] | None:
    """The beginnings of rows that brought their inputs, a slice at a time; None where it takes a look at each row.

    What all have in common is told once.
    """
    import polars as pl

    shapes = {
        "keys": answers.question.keys,
        "inputs": dict(zip(answers.names, answers.inputs.columns(), strict=True)),
        "outputs": answers.outputs,
    }
    alike = {**_alike(answers), "event_times": {}, "fallbacks": [], **{name: {} for name in shapes if not shapes[name]}}
    try:
        each = {name: _struct(columns) for name, columns in shapes.items() if columns}
        predictions = pl.Series(answers.predictions, dtype=pl.Float64)
        frame = pl.DataFrame({"request_id": pl.Series(answers.question.ids), "prediction": predictions, **each})
    except (TypeError, ValueError, pl.exceptions.PolarsError):
        return None
    end = b"," + orjson.dumps(alike)[1:-1]
    return ([line + end for line in _told_of(part)] for part in frame.iter_slices(TAKEN_ROWS))


def _struct(columns: Mapping[str, Sequence[Any]]) -> pl.Series:
    import polars as pl

    return pl.DataFrame([_series(name, values) for name, values in columns.items()]).to_struct()


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    """One column, whole and other numbers together as the latter. Raises TypeError for values of other natures."""
    import polars as pl

    try:
        return pl.Series(name, values)
    except TypeError:
        return pl.Series(name, values, dtype=pl.Float64)


def _told_of(part: pl.DataFrame) -> list[bytes]:
    """Each row as JSON without its closing brace. Within a text a new line is escaped, so none is cut."""
    told = BytesIO()
    part.write_ndjson(told)
    return told.getvalue().split(b"}\n")[:-1]


def _alike(answers: Answers) -> Row:
    """What all rows of a request have in common."""
    variant = answers.variant
    return {
        "at": answers.question.at,
        "release": variant.release,
        "version": variant.version,
        "variant": variant.role,
        "instead_of": answers.instead_of,
        "latency_ms": round(answers.latency_ms, 3),
    }


def _row(answers: Answers, place: int, values: Sequence[Any]) -> Row:
    question = answers.question
    looked = answers.looked[place] if answers.looked is not None else None
    return {
        "request_id": question.ids[place],
        **_alike(answers),
        "prediction": answers.predictions[place],
        "keys": {name: column[place] for name, column in question.keys.items()},
        "inputs": dict(zip(answers.names, values, strict=True)),
        "event_times": {view: moment_text(us) for view, us in looked.event_times.items()} if looked is not None else {},
        "fallbacks": looked.fallbacks if looked is not None else (),
        "outputs": {name: column[place] for name, column in answers.outputs.items()},
    }
