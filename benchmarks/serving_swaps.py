"""Twenty releases and rollbacks, one of them broken, and a worker killed with -9: what callers of two workers see.

The load is wrk's, at full speed, over the whole time; the peer is the same server left alone. No request may fail and
the broken release may never answer, or nothing is measured. The connections that the killed worker held break, since
nobody can answer on them, and may break once more where they come back before the kernel has taken its socket away.
At small scale, with every single answer looked at: tests/test_zero_downtime.py.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import polars as pl
import psutil
from rich.table import Table

from benchmarks import wrk
from benchmarks.contenders import Running, started
from benchmarks.harness import Figure, Measurement, fresh_home
from benchmarks.served_model import MODEL, bundle, features
from benchmarks.serving import ours
from benchmarks.wrk import FailedRequestsError, Load
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.process import WORKERS
from resources.releases import ReleaseStore
from resources.serving_status import statuses

WORKER_COUNT, CLIENTS = 2, 16
CHANGES, PAUSE = 20, 0.3
FOLLOW_SECONDS = 60.0
BROKEN = "broken"


class BrokenAnsweredError(AssertionError):
    """A release that does not answer its golden rows was let answer requests."""

    @classmethod
    def of(cls, tag: str, rows: int) -> BrokenAnsweredError:
        return cls(f"The broken release {tag} answered {rows} rows. Nothing was measured.")


def measure(changes: int = CHANGES, seconds: float = 10) -> Measurement:
    """About a minute."""
    if not wrk.available():
        return Measurement([], [wrk.MISSING])
    os.environ[WORKERS], before = str(WORKER_COUNT), os.environ.get(WORKERS)
    try:
        with fresh_home() as directory:
            return _measured(directory, changes, seconds)
    finally:
        os.environ.pop(WORKERS)
        if before is not None:
            os.environ[WORKERS] = before


def _measured(directory: Path, changes: int, seconds: float) -> Measurement:
    tags = built(directory)
    records = ReleaseStore()
    records.start_canary(MODEL, tags["1"], "1", [100], by="benchmark", why="the first")
    with started([ours()], features(64, seed=1).rows(), directory) as (server,):
        until(lambda: len(statuses(records.path(MODEL))) == WORKER_COUNT)
        bodies = server.bodies(directory / "bodies")
        alone = wrk.run(server.url, bodies, CLIENTS, seconds)
        with wrk.running(server.url, bodies, CLIENTS, 600) as load:
            followed = [_changed(records, tags, number, changes) for number in range(changes)]
        swapping = load()
        with wrk.running(server.url, bodies, CLIENTS, 600) as load:
            held, back = _killed(server)
            time.sleep(2)
        killed = load()
    for what, one, allowed in (("left alone", alone, 0), ("swapping", swapping, 0), ("after a kill", killed, 2 * held)):
        if one.refused or one.broken > allowed:
            raise FailedRequestsError.of(f"ours, {what}", CLIENTS, one)
    logged = answers(tags)
    figures = [
        Figure("serving_swaps.p99", swapping.p99, alone.p99, "the same server left alone", "us"),
        Figure("serving_swaps.time", 1e6 / swapping.per_second, 1e6 / alone.per_second, "the same", "us"),
    ]
    return Measurement(figures, [shown(alone, swapping, killed, followed, held, back, logged)])


def built(directory: Path) -> dict[str, str]:
    """The tags of the Bentos by version: three good ones, and one that does not answer its golden rows."""
    good = {version: bundle(directory / version, seed=int(version)) for version in ("1", "2", "3")}
    bad = bundle(directory / BROKEN, seed=4, shift=0.2)
    return {version: one.build(version) for version, one in {**good, BROKEN: bad}.items()}


def _changed(records: ReleaseStore, tags: dict[str, str], number: int, changes: int) -> float:
    """One change of traffic; the seconds until every worker had followed."""
    began = time.monotonic()
    if number == changes // 2:
        _release_broken(records, tags)
    else:
        _change(records, tags, number)
    until(lambda: {status.revision for status in statuses(records.path(MODEL))} == {records.current(MODEL).revision})
    taken = time.monotonic() - began
    time.sleep(PAUSE)
    return taken


def _change(records: ReleaseStore, tags: dict[str, str], number: int) -> None:
    """A release, a rollback, a canary, and its promotion, in turn."""
    now, why = records.current(MODEL), f"change {number}"
    version = next(version for version in ("1", "2", "3") if version != now.champion.version)
    if now.challenger is not None:
        records.advance(MODEL, by="benchmark", why=why)
    elif number % 4 == 1 and now.previous is not None:
        records.rollback(MODEL, by="benchmark", why=why)
    else:
        steps = [50, 100] if number % 4 == 2 else [100]
        records.start_canary(MODEL, tags[version], version, steps, by="benchmark", why=why)


def _release_broken(records: ReleaseStore, tags: dict[str, str]) -> None:
    """Until a serving process has refused it."""
    if records.current(MODEL).challenger is not None:
        records.rollback(MODEL, by="benchmark", why="to make room")
    records.start_canary(MODEL, tags[BROKEN], BROKEN, [100], by="benchmark", why="it is broken")
    until(lambda: records.current(MODEL).champion.release != tags[BROKEN])


def _killed(server: Running) -> tuple[int, float]:
    """Kill a worker: how many connections it had, and the seconds until another was there."""
    supervisor, records = psutil.Process(server.pid), ReleaseStore()
    time.sleep(1)
    worker = supervisor.children()[0]
    held = len([one for one in worker.net_connections("tcp") if one.raddr])
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: worker.pid not in (living := {one.pid for one in statuses(records.path(MODEL))}) and len(living) == 2)
    return held, time.monotonic() - began


def answers(tags: dict[str, str]) -> int:
    """How many answers are in the prediction log. Raises BrokenAnsweredError."""
    log = PredictionLog()
    found = pl.concat([log.read(MODEL, day).group_by("release").len() for day in log.days(MODEL)])
    bad = int(found.filter(pl.col("release") == tags[BROKEN])["len"].sum())
    if bad:
        raise BrokenAnsweredError.of(tags[BROKEN], bad)
    return int(found["len"].sum())


def until(condition: Callable[[], bool], seconds: float = FOLLOW_SECONDS) -> None:
    """TimeoutError when it does not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"The serving processes did not follow within {seconds:g} s.")
        time.sleep(0.01)


def shown(
    alone: Load, swapping: Load, killed: Load, followed: Sequence[float], held: int, back: float, logged: int
) -> Table:
    table = Table("", "requests", "failed", "requests/s", "p50 ms", "p99 ms", "")
    notes = {
        "left alone": (alone, f"{WORKER_COUNT} workers, {CLIENTS} connections"),
        "swapping": (swapping, f"{len(followed)} changes, followed in {median(followed):.2f} s, {max(followed):.2f} s"),
        "a worker killed": (killed, f"it held {held} connections; the next one was there after {back:.1f} s"),
    }
    for name, (load, note) in notes.items():
        numbers = (f"{load.per_second:,.0f}", f"{load.p50 / 1e3:.2f}", f"{load.p99 / 1e3:.2f}")
        table.add_row(name, f"{load.requests:,}", str(load.failed), *numbers, note)
    table.caption = f"{logged:,} answers in the prediction log"
    return table
