"""Alerts on their way: what no process has delivered yet is tried again, and given up after its time.

Whoever sends an alert delivers it at once; this is for what a process left that ended, or that a receiver refused.
"""

from __future__ import annotations

import dagster as dg

from resources.alerts import AlertResource

EVERY_SECONDS = 30
SECONDS = 20.0  # of a tick, at most: a receiver may hang


@dg.sensor(
    name="alerts",
    minimum_interval_seconds=EVERY_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Delivers the alerts that are still waiting: see `mlops alerts`.",
)
def alerts_sensor(alerts: AlertResource) -> dg.SkipReason:
    """Deliver what is due."""
    done = alerts.deliver(SECONDS)
    return dg.SkipReason("Nothing is due" if done else f"Deliveries take longer than {SECONDS:g} s and go on")
