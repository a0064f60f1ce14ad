"""Trailing windows: what was known of an entity at the start of each day.

Shared by the views below. A flight enters a window when it has landed (or would have left, if it was
cancelled), never when it was scheduled: at the moment of the row its outcome must be public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

import polars as pl

LATE_MINUTES = 15.0  # the US DOT's own definition of a late arrival
DAY = timedelta(days=1)


def outcomes(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Flights whose outcome is public, with the moment `known_at` at which it became so."""
    return flights.with_columns(
        known_at=pl.coalesce("arrival", pl.when("cancelled").then("scheduled_departure"))
    ).drop_nulls("known_at")


def at_midnight(flights: pl.LazyFrame, by: Sequence[str], days: int, aggregates: Mapping[str, pl.Expr]) -> pl.LazyFrame:
    """One row per key and midnight: `aggregates` over outcomes known in the `days` before it.

    A flight whose outcome became known during day D counts at the midnights D+1 ... D+days.
    """
    first_midnight = pl.col("known_at").dt.truncate("1d") + DAY
    return (
        outcomes(flights)
        .drop_nulls(by)
        .with_columns(event_timestamp=pl.concat_list(first_midnight + DAY * i for i in range(days)))
        .explode("event_timestamp")
        .group_by(*by, "event_timestamp")
        .agg(**aggregates)
    )
