"""Pressure on a departure: what the timetable asks of this flight, set against how its airport and carrier do today.

Computed when a prediction is asked for, from the newest stored features and from what the caller knows.
"""

from __future__ import annotations

import polars as pl

from feature_assets.flights.arrivals import arrivals
from feature_assets.flights.congestion import origin_congestion
from feature_assets.flights.entities import OWNERS
from feature_assets.flights.punctuality import carrier_punctuality
from mlops_assets import Float64, on_demand


@on_demand(
    reads=[origin_congestion, carrier_punctuality, arrivals],
    owners=OWNERS,
    schema={
        "waiting_share": Float64("Flights still at the gate for each one planned in the coming hour", minimum=0),
        "airport_over_carrier": Float64("Airport's delay now above its carrier's of the week", unit="minute"),
        "planned_speed": Float64("Distance over planned time from gate to gate", unit="mile/hour", minimum=0),
    },
)
def departure_pressure(
    waiting_departures: pl.Expr,
    planned_departures_1h: pl.Expr,
    departure_delay_3h: pl.Expr,
    carrier_mean_delay_7d: pl.Expr,
    distance: pl.Expr,
    planned_minutes: pl.Expr,
) -> dict[str, pl.Expr]:
    """How hard the timetable presses on this departure; null where the airport or the carrier is not known."""
    return {
        "waiting_share": waiting_departures / planned_departures_1h.clip(lower_bound=1),
        "airport_over_carrier": departure_delay_3h - carrier_mean_delay_7d,
        "planned_speed": distance / planned_minutes * 60,
    }
