"""Writes the prediction log from a serving process: off the hot path, bounded, never waited for.

An answer costs the request an append to a queue. A thread turns what is queued into lines every 0.1 s, so 0.2 s is
the most a kill loses. It shares the interpreter with whoever answers: it works in short slices and steps aside
between them, for an event loop that waits for a thread's turn waits 5 ms.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_assets.serving.plan import moment_of

if TYPE_CHECKING:
    from mlops_assets.serving.answers import Answers

FLUSH_SECONDS = 0.1
QUEUE_ROWS = 100_000  # about 100 MB of rows at worst
SLICE_ROWS = 32  # about 0.2 ms of work
TAKEN_ROWS = 256  # of a frame become Python values at once
ASIDE_SECONDS = 0.0002
SHADOW = ".shadow.jsonl"  # answers that nobody was given, in files of their own: no report may mix them in
logger = logging.getLogger(__name__)
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


class PredictionWriter:
    """Takes answers from any thread and writes them in its own, in the order they were given."""

    def __init__(self, root: Path, queue_rows: int = QUEUE_ROWS) -> None:
        self._root = root
        self._bound = queue_rows
        self._name = f"{os.getpid()}-{time.time_ns() // 1000}"
        self._queue: list[Answers] = []
        self._rows = 0  # queued, or being written
        self._refused: Counter[Spooled] = Counter()
        self._spools: dict[Spooled, _Spool] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def write(self, answers: Answers) -> None:
        """Queue the answers to a request; never waits. Those that find no room are counted, not kept."""
        size = len(answers.predictions)
        with self._lock:
            if self._rows + size <= self._bound:
                self._rows += size
                self._queue.append(answers)
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
        by_spool: dict[Spooled, list[Answers]] = {at: [] for at, spool in self._spools.items() if spool.dropped}
        for answers in queue:
            by_spool.setdefault(_spooled(answers), []).append(answers)
        for spooled, some in by_spool.items():
            self._append(self._spool(spooled), some)

    def _append(self, spool: _Spool, some: list[Answers]) -> None:
        """Lines for the answers, and for how many were dropped. What cannot be written must not end the log."""
        rows, size = sum(len(answers.predictions) for answers in some), 0
        try:
            spool.path.parent.mkdir(parents=True, exist_ok=True)
            with spool.path.open("ab") as file:
                count, size = 0, file.tell()
                for count, line in enumerate(_lines(spool, some, self._step_aside), 1):  # noqa: B007  # counted for after the loop
                    file.write(line)
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


def _lines(spool: _Spool, some: list[Answers], between: Callable[[], None] = lambda: None) -> Iterator[bytes]:
    """Each with its number in the file; `between` slices, who answers gets the interpreter."""
    now = datetime.now(UTC)
    told: list[Row] = [{"dropped": spool.dropped}] if spool.dropped else []
    rows = chain.from_iterable(map(_rows, some))  # made as they are written: all at once would hold the interpreter
    for seq, row in enumerate(chain(told, rows), spool.seq):
        row["writer"] = spool.writer
        row["seq"] = seq
        row["logged_at"] = now
        yield _line(row)
        if seq % SLICE_ROWS == 0:
            between()


def _line(row: Row) -> bytes:
    """One that cannot be written costs no other."""
    import orjson

    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        logger.warning("The answer to %r is not logged: %s", row.get("request_id"), error)
        lost = {"dropped": 1, **{name: row[name] for name in ("writer", "seq", "logged_at")}}
        return orjson.dumps(lost, option=orjson.OPT_APPEND_NEWLINE)


def _spooled(answers: Answers) -> Spooled:
    return answers.model, answers.question.at.date().isoformat(), answers.variant.role == "shadow"


def _rows(answers: Answers) -> Iterable[Row]:
    """What is told of each answer, in the order of the request's rows."""
    size = len(answers.predictions)
    if size == 1:
        (values,) = answers.inputs.rows()
        return [_row(answers, 0, values)]
    return _many(answers, size)


def _many(answers: Answers, size: int) -> Iterator[Row]:
    """A slice of a frame becomes Python values at a time."""
    for start in range(0, size, TAKEN_ROWS):
        places = range(start, min(start + TAKEN_ROWS, size))
        for place, values in zip(places, answers.inputs.take(places).rows(), strict=True):
            yield _row(answers, place, values)


def _row(answers: Answers, place: int, values: Sequence[Any]) -> Row:
    question, variant = answers.question, answers.variant
    looked = answers.looked[place] if answers.looked is not None else None
    return {
        "request_id": question.ids[place],
        "at": question.at,
        "release": variant.release,
        "version": variant.version,
        "variant": variant.role,
        "instead_of": answers.instead_of,
        "prediction": answers.predictions[place],
        "latency_ms": round(answers.latency_ms, 3),
        "keys": {name: column[place] for name, column in question.keys.items()},
        "inputs": dict(zip(answers.names, values, strict=True)),
        "event_times": {view: moment_text(us) for view, us in looked.event_times.items()} if looked is not None else {},
        "fallbacks": looked.fallbacks if looked is not None else (),
        "outputs": {name: column[place] for name, column in answers.outputs.items()},
    }
