"""Approvals: what waited too long expires, and whatever was decided reaches everybody, though its decider was killed.

The sensor decides nothing. It brings the registry, the history, the alerts and the release after the words that were
given; each of them knows what it was told already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dagster as dg

from resources.approvals import Approval

EVERY_SECONDS = 60


def approvals_sensor(
    model_id: str,
    tell: Callable[[], Sequence[Approval]],
    *,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
) -> dg.SensorDefinition:
    """Tell what was asked and decided about a model; `tell` returns what was news."""

    @dg.sensor(
        name=f"{model_id.replace('/', '__')}__approvals",
        minimum_interval_seconds=EVERY_SECONDS,
        default_status=default_status,
        description=f"Ends the wait for approvals of {model_id} that nobody gave in time.",
        tags={"mlops/model": model_id},
    )
    def sensor() -> dg.SensorResult:
        news = [f"version {item.version} is {item.state}" for item in tell()]
        return dg.SensorResult(skip_reason=f"{model_id}: {', '.join(news) or 'nothing new'}")

    return sensor
