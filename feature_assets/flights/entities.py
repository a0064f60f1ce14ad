"""What the flights team's features describe, and how its time is cut."""

from __future__ import annotations

import dagster as dg

from mlops_assets import Entity

airport = Entity("airport", "origin", description="Airport of departure, by FAA code: EWR, JFK or LGA")
destination = Entity("destination", "dest", description="Airport of arrival, by FAA code")
carrier = Entity("carrier", "carrier", description="Operating airline, by IATA code")
aircraft = Entity("aircraft", "tailnum", description="Airframe, by tail number")

OWNERS = ("team:flights",)

# New York's 31 December ends on 1 January in UTC, so the year has 366 UTC days.
daily = dg.DailyPartitionsDefinition(start_date="2013-01-01", end_date="2014-01-02")
# The offset lets a cutoff be there from its first moment on, not when its week is over.
weekly = dg.WeeklyPartitionsDefinition(start_date="2013-01-07", end_date="2014-01-06", day_offset=1, end_offset=1)
