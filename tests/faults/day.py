"""A day on which things go wrong: what happened on it before."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from conftest import Platform, Ran

DAY, NEXT_DAY, THIRD_DAY = "2013-07-01", "2013-07-02", "2013-07-03"
REPORT_DAY = "2013-07-08"
HOUR = timedelta(hours=1)


def midnight(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def ask(platform: Platform, day: str, *, fresh: bool = True) -> None:
    """The flights of an afternoon, asked about at their minutes; until all the answers are in the log.

    `fresh` online views are brought up twice meanwhile: a day whose answers lack what they stand on is judged by no
    report.
    """
    from mlops_assets.demo import departures
    from mlops_assets.serving.prediction_log import PredictionLog

    log = PredictionLog()
    written = log.read(platform.model.id, midnight(day).date()).height
    with platform.endpoint() as endpoint:
        for now in (midnight(day) + 16 * HOUR, midnight(day) + 18 * HOUR):
            if fresh:
                filled(platform.publish_online(now))
            for at, rows in departures(platform.model, now, now + 2 * HOUR):
                written += len(endpoint.ask(rows, at))
    deadline = time.monotonic() + 20
    while log.read(platform.model.id, midnight(day).date()).height < written:
        assert time.monotonic() < deadline, "the answers were not written down"
        time.sleep(0.02)


def filled(ran: Ran) -> None:
    assert ran.ok, ran.trouble


def drifted(platform: Platform) -> None:
    """Reports of a healthy pipeline and of drift, on enough rows, in the event log as the links write them."""
    from mlops_assets.links.spec import link_key

    for link, check, verdict in (
        ("quality_report", "pipeline_healthy", "healthy"),
        ("drift_report", "drift", "drift"),
    ):
        said = {"day": REPORT_DAY, "verdict": verdict, "rows": 5_000, "causes": "[]"}
        event = dg.AssetCheckEvaluation(link_key(platform.model, link), check, verdict == "healthy", metadata=said)
        platform.instance.report_runless_asset_event(event)
