"""The people who ask the endpoint: about every scheduled flight of a day, at its minute, over HTTP.

Cancelled flights too, since nobody knew. Beside them the stream that brings the hourly views online, hour by hour, by
the function that the online assets call; it has nothing to bring while the upstream is out.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, ModelPipeline
from resources.environment import home

if TYPE_CHECKING:
    import polars as pl

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FOLLOW_SECONDS = 60.0


class UnansweredError(RuntimeError):
    """The endpoint did not do what its callers may expect of it."""

    @classmethod
    def of(cls, what: str, found: object) -> Self:
        return cls(f"{what}: {found}. The endpoint's log is in {home() / 'logs'}.")


@dataclass
class Callers:
    """A connection to the endpoint of one model, and the stream of its hourly views."""

    model: ModelPipeline
    views: Sequence[FeatureView]
    address: HTTPConnection
    stores: Mapping[str, Any]

    def ask_day(self, day: date, *, streaming: bool) -> int:
        """Ask about the flights of a day that the log does not have yet; how many were asked about."""
        start, asked = midnight(day), 0
        self.address.close()  # the endpoint ends a connection that was silent for long; the next request opens another
        flights = self._unasked(departures(self.model, day), day)
        for hour in range(24):
            now = start + HOUR * hour
            if streaming:
                self._stream(now, everything=hour == 0)
            at = EVENT_TIMESTAMP
            due = flights.filter((flights[at] >= now) & (flights[at] < now + HOUR))
            for (moment,), rows in due.group_by(at, maintain_order=True):
                self._ask(rows.drop(at).to_dicts(), moment)
            asked += due.height
        self._await_logged(day)
        return asked

    def await_release(self) -> None:
        """Wait until the endpoint answers as the release record says."""
        from resources.releases import ReleaseStore

        record = ReleaseStore().current(self.model.id)
        self.address.close()
        expected, deadline = {variant.version for variant in record.answering}, time.monotonic() + FOLLOW_SECONDS
        while (found := self._serving()) != expected:
            if time.monotonic() > deadline:
                raise UnansweredError.of(f"The endpoint should answer from versions {sorted(expected)}", sorted(found))
            time.sleep(0.1)

    def _unasked(self, flights: pl.DataFrame, day: date) -> pl.DataFrame:
        from mlops_assets.serving.prediction_log import PredictionLog

        known = PredictionLog().read(self.model.id, day, types={})["request_id"]
        return flights.filter(~flights[self.model.labels.key].is_in(known.implode())) if len(known) else flights

    def _stream(self, now: datetime, *, everything: bool) -> None:
        from mlops_assets.links.online import publish_online

        for view in self.views:
            if everything or (view.ttl is not None and view.ttl < DAY):
                publish_online(self.stores["feast"], self.stores["lake"], view, now)

    def _ask(self, rows: list[dict[str, Any]], at: Any) -> None:
        status, body = self._exchange("POST", "predict", json.dumps({"rows": rows, "at": at.isoformat()}))
        if status != 200:
            raise UnansweredError.of(f"A request about {at}", f"{status} {body[:500]!r}")

    def _serving(self) -> set[str]:
        status, body = self._exchange("GET", "release")
        return {one["version"] for one in json.loads(body)["serving"]} if status == 200 else set()

    def _exchange(self, method: str, verb: str, body: str | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        self.address.request(method, f"/{self.model.id}/{verb}", body, headers)
        answer = self.address.getresponse()
        return answer.status, answer.read()

    def _await_logged(self, day: date) -> None:
        """The endpoint writes its answers down a moment after it gave them."""
        from mlops_assets.serving.prediction_log import PredictionLog

        due, deadline = departures(self.model, day).height, time.monotonic() + FOLLOW_SECONDS
        while (found := PredictionLog().read(self.model.id, day, types={}).height) < due:
            if time.monotonic() > deadline:
                raise UnansweredError.of(f"{due} answers of {day} should be in the log", found)
            time.sleep(0.1)


@contextmanager
def callers(model: ModelPipeline, views: Sequence[FeatureView]) -> Iterator[Callers]:
    """A real endpoint process of the model, as `mlops up` runs it, and those who will ask it."""
    from mlops_assets.processes import LOOPBACK, await_ready, endpoint_service, running
    from resources.environment import resources_for

    def quiet(_line: str) -> None:
        """The year has its own lines."""

    port = _own_port()
    with running([endpoint_service(port, [model.id])], home() / "logs", say=quiet) as started:
        await_ready(started, say=quiet)
        yield Callers(model, views, HTTPConnection(LOOPBACK, port, timeout=60), resources_for())


def _own_port() -> int:
    """One that the system gives to nobody else soon: an endpoint shares its port with whoever else binds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def departures(model: ModelPipeline, day: date) -> pl.DataFrame:
    """What is asked about each flight of a day, and when. One without a tail number has no aircraft to ask about."""
    import polars as pl

    from feature_assets.flights.arrivals import boarding
    from feature_assets.flights.sources import raw_flights

    columns = list(dict.fromkeys([model.labels.key, *model.labels.join_keys, *model.labels.request]))
    flights = boarding(raw_flights.compute((midnight(day), midnight(day) + DAY)))
    asked = flights.filter(pl.col("tailnum").is_not_null()).select(EVENT_TIMESTAMP, *columns)
    return asked.unique(model.labels.key, keep="first", maintain_order=True).collect()


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
