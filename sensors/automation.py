"""Automation: the one sensor that evaluates every asset's own condition, running from the start.

Dagster adds such a sensor by itself, but stopped; it is written out so that features and releases move
without a hand on a switch.
"""

from __future__ import annotations

import dagster as dg

automation_sensor = dg.AutomationConditionSensorDefinition(
    name="automation",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Materializes features, Bentos and reports when their automation conditions hold.",
)
