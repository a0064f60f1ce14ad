"""Events from outside that start a run: new data for a table, drift seen, an approval given. Each starts one, once.

An event lies in the platform's database under an id of its own; the same id again is the same event. `push` puts it
there, claims it and has Dagster's web server launch its run at once, over GraphQL. Where the web server is away, or
the pusher died between claim and launch, a sensor finds the event open and asks for the run instead: at its next tick
what nobody claimed, and after TAKEOVER_SECONDS what was claimed and has no run.

That only one run of an event ever starts does not rest on the claims, which merely spare the work: before a run is
queued, `resources.run_queue` gives it the event (`Inbox.give`), and of two runs the second is cancelled, however late
it comes. The clock decides nothing but when a claim is old, and one from the future is.
"""

from __future__ import annotations

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Self

from resources.database import transaction
from resources.environment import DAGSTER_URL, home

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import ColumnElement, Connection, RowMapping, Table

logger = logging.getLogger(__name__)

EVENT_TAG = "mlops/event"
ASSET_JOB = "__ASSET_JOB"  # Dagster's own job for a selection of assets
SENSOR = "events"
TAKEOVER_SECONDS = 20.0
LAUNCH_SECONDS = 10.0  # how long a pusher waits for the web server; shorter than its claim
STARTED, REFUSED = "started", "refused"
LOCATION, REPOSITORY = "mlops_assets", "__repository__"  # as workspace.yaml and Dagster name our code


class LaunchRefusedError(RuntimeError):
    """The web server answered, and did not launch the run."""

    @classmethod
    def of(cls, event: Event, why: str) -> Self:
        return cls(f"The web server did not launch the run of event {event.id!r}: {why}. The sensor tries it again.")


class UnknownEventError(LookupError):
    """An event that was never put into this inbox."""

    @classmethod
    def of(cls, event_id: str) -> Self:
        return cls(f"There is no event {event_id!r} in the inbox of {home()}. Push it first.")


@dataclass(frozen=True)
class Event:
    """What happened, and the run that it starts: some assets (`team/model/link`), or a job, perhaps of a partition.

    `subject` is what the event is about. `sensor` names the one that asks for the run where push does not; only a
    sensor of that job can ask for another job than that of the assets.
    """

    id: str
    kind: str
    assets: tuple[str, ...] = ()
    job: str = ASSET_JOB
    partition: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    sensor: str = SENSOR

    @property
    def run_tags(self) -> dict[str, str]:
        return {**self.tags, EVENT_TAG: self.id}


@dataclass(frozen=True)
class Received:
    """An event in the inbox. `outcome` is empty while it is open; `run_id` is the one run that may start for it."""

    event: Event
    at: float
    claimed_by: str = ""
    claimed_at: float = 0.0
    run_id: str | None = None
    outcome: str = ""
    why: str = ""

    @property
    def stale(self) -> bool:
        """Claimed by somebody who is not heard of any more."""
        return abs(time.time() - self.claimed_at) > TAKEOVER_SECONDS


@cache
def _table() -> Table:
    from sqlalchemy import JSON, Column, Float, Index, MetaData, String, Table

    table = Table(
        "events",
        MetaData(),
        Column("id", String, primary_key=True),
        *(Column(name, String, nullable=False) for name in ("subject", "sensor", "claimed_by", "outcome", "why")),
        Column("run_id", String),
        Column("at", Float, nullable=False),
        Column("claimed_at", Float, nullable=False),
        Column("event", JSON, nullable=False),
    )
    Index("events_open", table.c.sensor, table.c.outcome)
    Index("events_of_a_subject", table.c.subject)
    return table


@dataclass(frozen=True)
class Inbox:
    """The events in the platform's database. Every verb is one transaction: two that race take turns."""

    def put(self, event: Event) -> bool:
        """Whether the event is new."""
        with self._writing() as connection:
            if _row(connection, event.id):
                return False
            _insert(connection, event)
            return True

    def news(self, event: Event) -> Event:
        """Put in an event whose teller has no id for it; returns it under the id that it got.

        It is the event before about the same subject while that is open, and a new one once its run was started: a
        correction counts, and telling it twice does not.
        """
        with self._writing() as connection:
            told = _rows(connection, _table().c.subject == event.subject)
            waiting = [_received(row) for row in told if not row["outcome"] and not row["run_id"]]
            if waiting:
                return waiting[0].event
            numbered = replace(event, id=f"{event.subject}#{len(told) + 1}")
            _insert(connection, numbered)
            return numbered

    def claim(self, event_id: str, by: str) -> bool:
        """Whether the caller is the one to start it now."""
        with self._writing() as connection:
            row = _row(connection, event_id)
            if row is None or not _claimable(_received(row)):
                return False
            _claim(connection, [event_id], by)
            return True

    def due(self, sensor: str, by: str) -> list[Event]:
        """Claim all that a sensor is to ask for: nobody claimed them, or long ago and they have no run."""
        with self._writing() as connection:
            found = [one.event for one in _open(connection, sensor) if _claimable(one)]
            _claim(connection, [event.id for event in found], by)
            return found

    def give(self, event_id: str, run_id: str) -> bool:
        """Whether this run, and no other, is the one of the event."""
        with self._writing() as connection:
            row = _row(connection, event_id)
            if row is None or row["outcome"] not in ("", STARTED) or row["run_id"] not in (None, run_id):
                return False
            _set(connection, [event_id], run_id=run_id)
            return True

    def release(self, event_id: str) -> None:
        """Back to be asked for, at once."""
        with self._writing() as connection:
            _set(connection, [event_id], claimed_by="", claimed_at=0.0, run_id=None)

    def close(self, event_id: str, outcome: str, why: str = "") -> None:
        """Its run began, or it cannot have one."""
        with self._writing() as connection:
            _set(connection, [event_id], outcome=outcome, why=why)

    def open(self, sensor: str) -> list[Received]:
        """What has no run yet, or none that is known to have begun, oldest first."""
        with self._writing() as connection:
            return _open(connection, sensor)

    def read(self, event_id: str) -> Received:
        """Raises UnknownEventError."""
        with self._writing() as connection:
            row = _row(connection, event_id)
        if row is None:
            raise UnknownEventError.of(event_id)
        return _received(row)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with transaction(_table().metadata) as connection:
            yield connection


def push(event: Event, by: str = "push") -> str | None:
    """Put an event in and start its run at once; the id of its run, or None where the sensor is to start it."""
    inbox = Inbox()
    inbox.put(event)
    if inbox.claim(event.id, by):
        _launch(inbox, event)
    return inbox.read(event.id).run_id


def _launch(inbox: Inbox, event: Event) -> None:
    """A failure is logged: the event is in the inbox, and the sensor will find it there."""
    server = web_server()
    if server is None:
        inbox.release(event.id)
        return
    try:
        run_id = launch(server, event)
    except TimeoutError:  # it may yet launch it: the claim stands until it is old
        logger.warning("The web server took over %g s to launch event %r; the sensor looks", LAUNCH_SECONDS, event.id)
    except (OSError, HTTPException, LaunchRefusedError) as problem:
        logger.warning("Event %r is left to the sensor: %s", event.id, problem)
        inbox.release(event.id)
    else:
        inbox.give(event.id, run_id)


def web_server() -> str | None:
    """Where this platform's web server listens: as the environment says, else as `mlops up` wrote down."""
    if given := os.environ.get(DAGSTER_URL):
        return given.rstrip("/")
    written = address_file()
    return written.read_text().strip() if written.exists() else None


def address_file() -> Path:
    return home() / "dagster" / "address"


LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on Error { message }
  }
}
"""


def launch(server: str, event: Event) -> str:
    """Have a web server launch the run of an event; its id. Raises OSError, TimeoutError or LaunchRefusedError.

    The run carries the tags of one that the sensor asked for, so that the daemon, too, takes it for the same.
    """
    keys = [{"path": asset.split("/")} for asset in event.assets] or None
    tags = {**event.run_tags, "dagster/run_key": event.id, "dagster/sensor_name": event.sensor}
    if event.partition:
        tags["dagster/partition"] = event.partition
    selector = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "jobName": event.job}
    params = {
        "selector": {**selector, "assetSelection": keys},
        "runConfigData": dict(event.config),
        "mode": "default",
        "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
    }
    answer = _ask(server, {"query": LAUNCH, "variables": {"params": params}})
    said = (answer.get("data") or {}).get("launchRun") or {}
    if said.get("__typename") != "LaunchRunSuccess":
        raise LaunchRefusedError.of(event, str(said.get("message") or said.get("errors") or answer.get("errors")))
    return str(said["run"]["runId"])


def _ask(server: str, body: Mapping[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310  the platform's own address
        f"{server}/graphql", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=LAUNCH_SECONDS) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
            return answer
    except urllib.error.HTTPError as error:
        return {"errors": [f"{error.code} {error.read(2_000).decode(errors='replace')}"]}
    except urllib.error.URLError as error:
        raise (error.reason if isinstance(error.reason, OSError) else error) from error


def _claimable(received: Received) -> bool:
    unclaimed = not received.claimed_by or received.stale
    return not received.outcome and received.run_id is None and unclaimed


def _insert(connection: Connection, event: Event) -> None:
    from sqlalchemy import insert

    said = {"id": event.id, "subject": event.subject, "sensor": event.sensor, "event": asdict(event)}
    unclaimed = {"claimed_by": "", "claimed_at": 0.0, "outcome": "", "why": ""}
    connection.execute(insert(_table()).values(**said, **unclaimed, at=time.time()))


def _claim(connection: Connection, ids: list[str], by: str) -> None:
    _set(connection, ids, claimed_by=by, claimed_at=time.time())


def _set(connection: Connection, ids: list[str], **values: Any) -> None:
    from sqlalchemy import update

    connection.execute(update(_table()).where(_table().c.id.in_(ids)).values(**values))


def _row(connection: Connection, event_id: str) -> RowMapping | None:
    return next(iter(_rows(connection, _table().c.id == event_id)), None)


def _open(connection: Connection, sensor: str) -> list[Received]:
    table = _table()
    return [_received(row) for row in _rows(connection, (table.c.sensor == sensor) & (table.c.outcome == ""))]


def _rows(connection: Connection, chosen: ColumnElement[bool]) -> list[RowMapping]:
    from sqlalchemy import select

    return list(connection.execute(select(_table()).where(chosen).order_by(_table().c.at)).mappings())


def _received(row: RowMapping) -> Received:
    told = {name: row[name] for name in ("at", "claimed_by", "claimed_at", "run_id", "outcome", "why")}
    return Received(Event(**{**row["event"], "assets": tuple(row["event"]["assets"])}), **told)
