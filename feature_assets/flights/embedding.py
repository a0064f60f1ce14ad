"""Aircraft embeddings: one row per airframe and Monday, as known at that midnight: where it has been flying.

The truncated SVD of the aircraft-by-destination matrix of the last four weeks keeps the eight strongest patterns of
the network. Its own coordinates mean something else every week: signs, order and rotation of the patterns are
arbitrary. So each airframe's smoothed destinations are read off along eight directions that never change, drawn from
a hash of each destination's code: a dimension means the same in any week, and none needs another week's data.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import polars as pl

from feature_assets.flights.entities import OWNERS, aircraft, daily
from feature_assets.flights.trailing import outcomes
from mlops_assets import Float64Array, MeanOverEntities, feature_view

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

SIZE = 8
WEEKS = 4
WEEK = timedelta(weeks=1)


@feature_view(
    entities=[aircraft],
    ttl=timedelta(days=8),  # a week, and a day in which to publish the next
    lookback=timedelta(days=30),
    partitions=daily,
    sparse=True,
    owners=OWNERS,
    cold_start=MeanOverEntities(window=timedelta(days=90)),
    schema={
        "embedding": Float64Array("Where it flew in the last four weeks", size=SIZE, minimum=-10, maximum=10),
    },
)
def aircraft_embedding(raw_flights: pl.LazyFrame) -> pl.LazyFrame:
    """The pattern of destinations of each airframe, as eight numbers, every Monday."""
    flown = visits(raw_flights.filter(~pl.col("cancelled"))).sort("event_timestamp", "tailnum", "dest").collect()
    weeks = [embedded(week) for _, week in flown.group_by("event_timestamp", maintain_order=True)]
    return pl.concat([embedded(flown.clear()), *weeks]).lazy()


def visits(flights: pl.LazyFrame) -> pl.LazyFrame:
    """Flights of each airframe to each destination whose outcome became known in the four weeks before a Monday."""
    coming_monday = pl.col("known_at").dt.truncate("1w") + WEEK
    return (
        outcomes(flights)
        .drop_nulls(["tailnum", "dest"])
        .with_columns(event_timestamp=pl.concat_list(coming_monday + WEEK * i for i in range(WEEKS)))
        .explode("event_timestamp")
        .group_by("tailnum", "dest", "event_timestamp")
        .agg(flights=pl.len())
    )


def embedded(week: pl.DataFrame) -> pl.DataFrame:
    """The visits of one Monday (`tailnum`, `dest`, `event_timestamp`, `flights`) as one vector per airframe."""
    import numpy as np
    from scipy.sparse import csr_array

    tails, dests = (week[name].unique().sort() for name in ("tailnum", "dest"))
    places = tails.search_sorted(week["tailnum"]).to_numpy(), dests.search_sorted(week["dest"]).to_numpy()
    # The root tames the shuttles, the length leaves where it flies and not how much.
    flown = pl.col("flights")
    shares = week.select((flown / flown.sum().over("tailnum")).sqrt()).to_series().to_numpy()
    matrix = csr_array((shares, places), shape=(len(tails), len(dests)))
    vectors = along(matrix, directions(dests.to_list()))
    column = pl.Series("embedding", np.ascontiguousarray(vectors), pl.Array(pl.Float64, SIZE)).arr.to_list()
    return pl.DataFrame([tails, column]).join(week.select("event_timestamp").unique(), how="cross")


def along(matrix: csr_array, axes: np.ndarray) -> np.ndarray:
    """The matrix, smoothed to as many patterns as there are axes, along each axis: `U S Vt @ axes`."""
    import numpy as np
    from scipy.sparse.linalg import svds  # type: ignore[import-untyped]

    rank = axes.shape[1]
    if min(matrix.shape) <= rank:
        return matrix @ axes  # it has no more patterns than that
    start = np.ones(min(matrix.shape))  # the same rows must give the same bytes
    left, strength, patterns = svds(matrix, k=rank, v0=start)
    return (left * strength) @ (patterns @ axes)


def directions(destinations: list[str]) -> np.ndarray:
    """For each destination its place along the eight directions, from the hash of its code; the same for ever."""
    from hashlib import sha256

    import numpy as np

    digests = b"".join(sha256(name.encode()).digest() for name in destinations)
    even = np.frombuffer(digests, ">u4").reshape(len(destinations), SIZE) / 2**31 - 1
    return even * np.sqrt(3 / SIZE)  # of length one on average
