"""The year, day by day: the upstream delivers, people ask, and the daemons do the rest.

A day is lived in the first minutes after it, when Dagster takes it for a partition: 00:00 its data comes and the tables
follow; its flights are asked about, each at its own minute; 00:05 the log becomes the table of predictions, the online
views and the reports follow. What the reports' decision asks for starts at the next tick.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from mlops_assets.catalog import Table, asset_key
from mlops_assets.declarations import ModelPipeline
from mlops_assets.year.callers import Callers, midnight
from mlops_assets.year.incidents import Incidents, release_badly
from mlops_assets.year.journal import Day, Journal
from mlops_assets.year.launcher import cpu_seconds
from mlops_assets.year.upstream import TEAM, Upstream
from resources.events import Event, Inbox

if TYPE_CHECKING:
    from mlops_assets.year.daemon import Daemon

logger = logging.getLogger(__name__)
FIRST_DAY = date(2013, 1, 1)
REPORTS = ("drift_report", "performance_report", "quality_report")
BEFORE_MIDNIGHT_TABLES = timedelta(minutes=5)
DAY = timedelta(days=1)
MOST_TICKS = 10  # until the tables follow a delivery


class UnpreparedError(RuntimeError):
    """What a replay needs did not come to be."""


@dataclass
class Replay:
    """The platform under its daemons, and those who deal with it."""

    model: ModelPipeline
    tables: Sequence[Table]
    daemon: Daemon
    callers: Callers
    incidents: Incidents
    upstream: Upstream
    journal: Journal

    def prepare(self, start: date) -> None:
        """What a person does once: fill the tables with the days before `start`, and ask for the first training."""
        self.daemon.clock.now = midnight(start)
        self.daemon.tick()  # conditions compare with what they saw last
        for number in range((start - FIRST_DAY).days):
            self.upstream.lay_down(FIRST_DAY + timedelta(days=number))
        Inbox().put(Event("planes", "new data", (f"{TEAM}/raw_planes",)))
        self.daemon.backfill([asset_key(table).to_user_string() for table in self.tables], FIRST_DAY, start - DAY)
        self.daemon.settle()
        links = [f"{self.model.id}/{link}" for link in ("training_set", "candidate")]
        Inbox().put(Event("first training", "asked for by a person", tuple(links), partition=str(start)))
        self.daemon.settle()
        self.daemon.clock.now = midnight(start) + BEFORE_MIDNIGHT_TABLES
        self.daemon.settle()  # today's five past midnight is over, and not a reason for tomorrow
        if not _champion(self.model):
            raise UnpreparedError(
                f"No version of {self.model.title} is champion after the training as of {start}. "
                "Look at the first run that failed, or at the gate."
            )

    def days(self, first: date, last: date) -> Iterator[Day]:
        """Live the days that the journal does not have yet."""
        done = {one.day for one in self.journal.read()}
        for number in range((last - first).days + 1):
            day = first + timedelta(days=number)
            if str(day) not in done:
                lived = self._live(day)
                self.journal.write(lived)
                yield lived

    def end(self) -> None:
        """What the last day asked for, the online views among it."""
        self.daemon.settle()

    def _live(self, day: date) -> Day:
        began, used, over, notes = time.monotonic(), cpu_seconds(), midnight(day) + DAY, list[str]()
        self.daemon.clock.now = over
        notes += self._deliveries(day)
        self.daemon.tick()
        self._await_tables(day)
        self.callers.await_release()
        notes += self._bad_release(day)
        asked = self.callers.ask_day(day, streaming=not self.incidents.out(day))
        self.daemon.clock.now = over + BEFORE_MIDNIGHT_TABLES
        self.daemon.settle(sensors=False)
        record = _record(self.model)
        traffic = ", ".join(f"v{one.version} {one.weight} %" for one in record.variants) if record else "none"
        spent = time.monotonic() - began, cpu_seconds() - used
        return Day(str(day), asked, _champion(self.model), traffic, self._reports(day), tuple(notes), *spent)

    def _await_tables(self, day: date) -> None:
        """What was late is computed by a backfill, which takes a tick or two more; the stream reads the tables."""
        from resources.environment import resources_for

        lake, due = resources_for()["lake"], [asset_key(table) for table in self.tables]
        for _ in range(MOST_TICKS):
            if self.incidents.out(day) or all(lake.exists(key, str(day)) for key in due):
                return
            self.daemon.tick(sensors=False)
        raise UnpreparedError(f"The tables of {day} were delivered and are not there. Look at the runs of the day.")

    def _deliveries(self, day: date) -> Iterator[str]:
        if self.incidents.out(day):
            yield "outage: nothing was delivered"
            return
        if day == self.incidents.back:
            for number in range((self.incidents.back - self.incidents.outage).days):
                self.upstream.deliver(self.incidents.outage + timedelta(days=number))
            yield "the outage is over: three days were delivered late"
        self.upstream.deliver(day)
        if day == self.incidents.duplicate:
            self.upstream.deliver(self.incidents.delivered_twice, "again")
            yield f"{self.incidents.delivered_twice} was delivered twice"
        if day == self.incidents.correction:
            changed = self.upstream.correct(self.incidents.corrected)
            yield f"{changed} flights of {self.incidents.corrected} were corrected"

    def _bad_release(self, day: date) -> Iterator[str]:
        """As a canary, on the first day from the planned one on that has no canary of its own."""
        if day < self.incidents.bad_release or any(
            "bad release" in note for one in self.journal.read() for note in one.notes
        ):
            return
        record = _record(self.model)
        if record is None or record.challenger:
            return
        bad = release_badly(self.model)
        self.callers.await_release()
        yield f"bad release: {bad.challenger.release if bad.challenger else 'none'} got its first share"

    def _reports(self, day: date) -> dict[str, dict[str, Any]]:
        import dagster as dg

        found = {}
        for link in REPORTS:
            key = dg.AssetKey([*self.model.id.split("/"), link])
            records = self.daemon.instance.fetch_materializations(
                dg.AssetRecordsFilter(key, asset_partitions=[str(day)]), limit=1
            ).records
            if records and (told := records[0].asset_materialization):
                plain = {name: value.value for name, value in told.metadata.items()}
                found[link] = {
                    name: value for name, value in plain.items() if isinstance(value, int | float | str | list)
                }
        return found


def _record(model: ModelPipeline) -> Any:
    from resources.releases import ReleaseStore

    return ReleaseStore().read(model.id)


def _champion(model: ModelPipeline) -> str:
    record = _record(model)
    return str(record.champion.version) if record else ""
