"""Will this flight reach its gate more than 15 minutes late? Asked at its scheduled departure."""

from __future__ import annotations

from datetime import timedelta

import polars as pl

from feature_assets.flights.aircraft import aircraft_use
from feature_assets.flights.arrivals import arrivals
from feature_assets.flights.congestion import origin_congestion
from feature_assets.flights.entities import OWNERS, weekly
from feature_assets.flights.punctuality import carrier_punctuality, route_punctuality
from feature_assets.flights.weather import weather_hourly
from mlops_assets import (
    Bool,
    FloatRange,
    Gate,
    IntRange,
    ModelPipeline,
    Monitor,
    Search,
    Serve,
    String,
    TimeSplit,
    postprocess,
)
from mlops_assets.trainers import XGBoostClassifier

WARN = 0.35  # about the sixth of flights that are likeliest to be late


@postprocess(
    schema={
        "likely_late": Bool("Worth a warning to who waits at the gate"),
        "risk": String("How likely a late arrival is: low, raised or high"),
    }
)
def lateness(prediction: pl.Expr) -> dict[str, pl.Expr]:
    """What a probability means to the people at the gate."""
    high, raised = prediction >= WARN, prediction >= WARN / 2
    return {
        "likely_late": high,
        "risk": pl.when(high).then(pl.lit("high")).when(raised).then(pl.lit("raised")).otherwise(pl.lit("low")),
    }


late_arrival = ModelPipeline(
    name="late_arrival",
    team="flights",
    description="Probability that a flight reaches its gate more than 15 minutes after schedule.",
    owners=OWNERS,
    labels=arrivals,
    label="late",
    features=[weather_hourly, origin_congestion, carrier_punctuality, route_punctuality, aircraft_use],
    trainer=XGBoostClassifier(n_estimators=200),
    cutoffs=weekly,
    split=TimeSplit(holdout=timedelta(days=14), validation=timedelta(days=14)),
    search=Search(
        trials=6,
        space={
            "max_depth": IntRange(3, 9),
            "learning_rate": FloatRange(0.03, 0.3, log=True),
            "min_child_weight": FloatRange(1, 30, log=True),
            "subsample": FloatRange(0.5, 1.0),
        },
    ),
    gate=Gate(metric="roc_auc", at_least=0.65, beats_champion_by=0.0, slices=["carrier", "origin"]),
    serve=Serve(canary=[10, 50, 100]),
    postprocess=lateness,
    monitor=Monitor(psi=0.2, metric_drop=0.03, cooldown=timedelta(days=7)),
)
