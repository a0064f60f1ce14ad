"""How many minutes after schedule will this flight reach its gate? Asked at its scheduled departure."""

from __future__ import annotations

from datetime import timedelta

from feature_assets.flights.arrivals import arrivals
from feature_assets.flights.congestion import origin_congestion
from feature_assets.flights.embedding import aircraft_embedding
from feature_assets.flights.entities import OWNERS, weekly
from feature_assets.flights.punctuality import carrier_punctuality, route_punctuality
from feature_assets.flights.weather import weather_hourly
from mlops_assets import Gate, ModelPipeline, TimeSplit
from mlops_assets.trainers import LightGBMRegressor

arrival_delay = ModelPipeline(
    name="arrival_delay",
    team="flights",
    description="Minutes between a flight's scheduled and actual arrival; negative is early.",
    owners=OWNERS,
    labels=arrivals,
    label="arrival_delay",
    features=[
        weather_hourly,
        origin_congestion,
        carrier_punctuality[["carrier_mean_delay_7d", "carrier_cancelled_share_7d"]],
        route_punctuality[["route_mean_delay_28d", "route_air_time_28d"]],
        aircraft_embedding,
    ],
    trainer=LightGBMRegressor(),
    cutoffs=weekly,
    trained="at each cutoff",
    split=TimeSplit(holdout=timedelta(days=14), window=timedelta(days=120)),
    gate=Gate(metric="mae", at_most=30.0, beats_champion_by=0.0),
)
