"""`mlops year`: replay it, judge it, compare it, and say so in tables and a picture."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.claims import Claim
from mlops_assets.year.incidents import Incidents
from mlops_assets.year.journal import Day, Journal
from mlops_assets.year.rivals import Fared
from mlops_assets.year.upstream import Upstream
from resources.environment import home, prepare_home, quiet_telemetry

if TYPE_CHECKING:
    from rich.console import Console

    from mlops_assets.year.daemon import Daemon
    from mlops_assets.year.verdict import Year

FIRST, LAST = date(2013, 4, 1), date(2013, 12, 31)
PREPARED = "year.prepared"
PICTURE, REPORT = "year.png", "year.md"
CAUSES_SHOWN = 60


@dataclass(frozen=True)
class Told:
    """What the year came to."""

    year: Year
    judged: Sequence[Claim]
    results: Sequence[Fared]
    seconds: float

    @property
    def holds(self) -> bool:
        return all(claim.passed for claim in self.judged)


class NotACutoffError(ValueError):
    """The first day is none that a first training could be as of."""

    @classmethod
    def of(cls, first: date) -> Self:
        return cls(f"{first} is not a Monday from {FIRST} to {LAST}. The first training is as of that day: give one.")


class OtherReplayError(RuntimeError):
    """What lies here is a replay of other days."""

    @classmethod
    def of(cls, there: str, asked: str) -> Self:
        return cls(f"{home()} holds a replay of {there}, and {asked} was asked for. Ask for those, or give --fresh.")

    @classmethod
    def running(cls) -> Self:
        return cls(f"Another process replays the year in {home()}. Wait for it, or stop it.")


def run_year(
    first: date | None = None,
    days: int | None = None,
    until: date | None = None,
    *,
    rivals: bool = True,
    fresh: bool = False,
) -> int:
    """Replay the days, or go on with them; 0 when every claim about the year holds. State lies beside MLOPS_HOME.

    `until` ends it early, and judges what was lived; the next call goes on from there.
    """
    first = first or FIRST
    if first.weekday() or not FIRST <= first <= LAST:
        raise NotACutoffError.of(first)
    last = min(first + timedelta(days=days - 1), LAST) if days else LAST
    os.environ["MLOPS_HOME"] = str(home().with_name(f"{home().name}.year"))
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    with _alone():
        if fresh and home().exists():
            shutil.rmtree(home())
        _refuse_another(f"{first} to {last}")
        quiet_telemetry()
        prepare_home()
        console = _console()
        told = _lived(console, first, last, min(until or last, last), rivals)
        _show(console, told)
    return 0 if told.holds else 1


def _refuse_another(asked: str) -> None:
    """Incidents lie at shares of the days: other days would have others, some of them in the past."""
    prepared = home() / PREPARED
    if prepared.exists() and (there := prepared.read_text()) != asked:
        raise OtherReplayError.of(there, asked)


@contextmanager
def _alone() -> Iterator[None]:
    """Two replays of one home would live each day twice."""
    from filelock import FileLock, Timeout

    home().parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(home().with_name(f"{home().name}.lock"), timeout=0):
            yield
    except Timeout as held:
        raise OtherReplayError.running() from held


def _console() -> Console:
    """Of the terminal; what Dagster logs of thousands of runs goes to a file."""
    from rich.console import Console

    terminal = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    log = os.open(home() / "logs" / "year.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    return Console(file=terminal, width=None if terminal.isatty() else 160)


def _lived(console: Console, first: date, last: date, until: date, rivals: bool) -> Told:
    from mlops_assets.year.callers import callers, midnight
    from mlops_assets.year.daemon import daemon
    from mlops_assets.year.definitions import catalog, model
    from mlops_assets.year.pages import mondays_only
    from mlops_assets.year.replay import Replay
    from mlops_assets.year.rivals import fared, training_weekly
    from mlops_assets.year.verdict import Year, claims

    began, plan, journal = time.monotonic(), Incidents.between(first, last), Journal.here()
    online = [view for view in catalog.views if view.online]
    partitioned = [table for table in catalog.tables.values() if table.partitions]
    with ExitStack() as stack:
        running = stack.enter_context(daemon(midnight(first)))
        asking = stack.enter_context(callers(model, online))
        stack.enter_context(mondays_only())
        replay = Replay(model, partitioned, running, asking, plan, Upstream.here(), journal)
        if not (home() / PREPARED).exists():
            replay.prepare(first)
            (home() / PREPARED).write_text(f"{first} to {last}")
            console.print(f"Prepared in {time.monotonic() - began:.0f} s: tables up to {first}, the first training.")
        training = stack.enter_context(training_weekly(first, until) if rivals else nullcontext(None))
        for day in replay.days(first, until):
            console.print(_line(day), highlight=False)
        replay.end()
        if training is not None:
            training.wait()
        days = [day for day in journal.read() if str(first) <= day.day <= str(until)]
        year = Year(model, catalog, running.instance, plan, days)
        judged = list(claims(year))
        results = fared(model, [day.day for day in days]) if rivals else []
        _times(console, running)
        told = Told(year, judged, results, time.monotonic() - began)
        _write(told)
    return told


def _line(day: Day) -> str:
    performance, drift = day.reports.get("performance_report", {}), day.reports.get("drift_report", {})
    quality = day.reports.get("quality_report", {})
    metric = performance.get("metric")
    said = f"{performance.get('verdict', '')} {metric:.4f}" if isinstance(metric, float) else "no metric yet"
    share = drift.get("drifted_share")
    drifted = f"drifted {share:.0%}" if isinstance(share, float) else "drift unknown"
    parts = [f"{day.day} {day.asked:4d} asked", day.traffic, said, drifted, str(quality.get("verdict", ""))]
    return "; ".join([*filter(None, parts), *day.notes]) + f" ({day.seconds:.1f} s)"


def _times(console: Console, running: Daemon) -> None:
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in running.spent.items())
    console.print(f"{running.ticks} ticks; seconds of CPU: {spent}")


def _show(console: Console, told: Told) -> None:
    from rich.table import Table

    for title, head, rows in tables(told):
        table = Table(*head, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for claim in told.judged:
        console.print(f"[{'green]holds' if claim.passed else 'red]BROKEN'}[/] {claim.name}: {claim.reason}")
    console.print(f"{told.seconds / 60:.1f} minutes. {home() / PICTURE}", soft_wrap=True)


def tables(told: Told) -> list[tuple[str, list[str], list[list[str]]]]:
    """The closing tables: title, columns, rows."""
    ways = [
        [one.way, f"{one.flights:,}", f"{one.metric:.4f}", str(one.trainings), f"{one.cpu_seconds:,.0f}"]
        for one in told.results
    ]
    return [
        (
            "Versions",
            ["version", "cutoff", told.year.model.gate.metric, "gate", "became", "answered"],
            versions(told.year),
        ),
        (
            "Decisions about retraining",
            ["report day", "outcome", "times", "reasons"],
            [
                [str(one.day), one.outcome, str(one.times), "; ".join(one.reasons)[:110]]
                for one in _decisions(told.year)
                if one.outcome != "no"
            ][:CAUSES_SHOWN],
        ),
        ("Ways of working", ["way", "flights", "metric", "trainings", "CPU s"], ways),
    ]


def versions(year: Year) -> list[list[str]]:
    """Every registered version: of which cutoff, how judged, and on which days it was champion."""
    from mlops_assets.year.picture import reigns
    from resources.environment import resources_for

    client = resources_for()["mlflow"].client()
    turns = list(reigns(year))
    rows = []
    for one in sorted(
        client.search_model_versions(f"name = '{year.model.registered_name}'"), key=lambda v: int(v.version)
    ):
        run = client.get_run(one.run_id)
        metric = next((value for name, value in run.data.metrics.items() if name.startswith("holdout")), None)
        mine = [f"{first} to {last}" for version, first, last in turns if version == str(one.version)]
        fate = "champion" if mine else one.tags.get("refused_because", "")[:60]
        shown = f"{metric:.4f}" if metric is not None else ""
        cutoff = run.data.tags.get("dagster/partition", "")
        rows.append([str(one.version), cutoff, shown, one.tags.get("gate", ""), fate, ", ".join(mine)])
    return rows


def _decisions(year: Year) -> list[Any]:
    from resources.decisions import DecisionStore

    return [one for one in DecisionStore().history(year.model.id) if one.kind == "retrain"]


def _write(told: Told) -> None:
    """The picture, and the tables as a page."""
    from mlops_assets.year.picture import draw
    from mlops_assets.year.verdict import as_json

    draw(told.year, told.results, home() / PICTURE)
    (home() / "year.json").write_text(as_json(told.judged))
    lines = [f"# {len(told.year.days)} days of {told.year.model.id}", ""]
    for title, head, rows in tables(told):
        lines += [f"## {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        lines.append("")
    lines += ["## Claims", ""]
    lines += [f"- {'holds' if one.passed else '**broken**'}: {one.name}. {one.reason}" for one in told.judged]
    lines += ["", f"{told.seconds / 60:.1f} minutes."]
    Path(home() / REPORT).write_text("\n".join(lines) + "\n")
