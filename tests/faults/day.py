"""A day on which things go wrong: what happened on it before."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from conftest import Platform

DAY, NEXT_DAY, THIRD_DAY = "2013-07-01", "2013-07-02", "2013-07-03"
REPORT_DAY = "2013-07-08"
HOUR = timedelta(hours=1)


def midnight(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def ask(platform: Platform, day: str) -> None:
    """The flights of an afternoon, asked about at their minutes; until all the answers are in the log."""
    from mlops_assets.demo import departures
    from mlops_assets.serving.prediction_log import PredictionLog

    asked = 0
    with platform.endpoint() as endpoint:
        for at, rows in departures(platform.model, midnight(day) + 16 * HOUR, midnight(day) + 20 * HOUR):
            asked += len(endpoint.ask(rows, at))
    log, deadline = PredictionLog(), time.monotonic() + 20
    while log.read(platform.model.id, midnight(day).date()).height < asked:
        assert time.monotonic() < deadline, "the answers were not written down"
        time.sleep(0.02)


def drifted(platform: Platform) -> None:
    """A report of drift on enough rows, in the event log as the link writes it."""
    from mlops_assets.links.spec import link_key

    said = {"day": REPORT_DAY, "verdict": "drift", "rows": 5_000, "causes": '["temp moved"]'}
    event = dg.AssetCheckEvaluation(link_key(platform.model, "drift_report"), "drift", False, metadata=said)
    platform.instance.report_runless_asset_event(event)
