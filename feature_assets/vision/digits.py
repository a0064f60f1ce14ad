"""Handwritten digits: 1,797 real images of 8 by 8 pixels, which scikit-learn carries with it.

They are the test part of the "Optical Recognition of Handwritten Digits" of Alpaydin and Kaynak (UCI, 1998): 32 by 32
bitmaps of 43 people's forms, counted in blocks of 4 by 4, so that a pixel is a whole number from 0 to 16. Images and
classes are real. Their times are not: the data set has none. So one order is drawn, the same for ever, and an image is
taken to be scanned every twenty minutes from 2024 on. Writers and digits are mixed in every day of it, and nothing
drifts by itself; the class is taken to be typed in an hour after the scan.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

import dagster as dg
import polars as pl

from mlops_assets import Float64Array, Int64, String, UnixTimestamp, labels, source

OWNERS = ("team:vision",)
FIRST, EVERY, TYPED_IN = datetime(2024, 1, 1, tzinfo=UTC), timedelta(minutes=20), timedelta(hours=1)
SEED = 20240101
HEIGHT, WIDTH, DARKEST = 8, 8, 16

# 72 images a day fill 25 days. A cutoff is there from its first moment on, not when its week is over.
daily = dg.DailyPartitionsDefinition(start_date="2024-01-01", end_date="2024-01-26")
weekly = dg.WeeklyPartitionsDefinition(start_date="2024-01-15", end_date="2024-01-29", day_offset=1, end_offset=1)

PIXELS = Float64Array(
    "Darkness line by line, from the upper left", size=HEIGHT * WIDTH, minimum=0, maximum=DARKEST, max_null_share=0
)
DIGIT = Int64("The digit that was written", minimum=0, maximum=9, max_null_share=0)


@cache  # a backfill asks for it once a process
def all_digits() -> pl.DataFrame:
    """Every image with its place in the data set and the moment that it is taken to be scanned."""
    import numpy as np
    from sklearn.datasets import load_digits

    bundled = load_digits()
    order = np.random.default_rng(SEED).permutation(len(bundled.target))
    return pl.DataFrame(
        {
            "image_id": [f"digit-{place:04}" for place in order],
            "scanned_at": [FIRST + turn * EVERY for turn in range(len(order))],
            "pixels": bundled.data[order].tolist(),
            "digit": bundled.target[order],
        },
        schema={
            "image_id": pl.String,
            "scanned_at": pl.Datetime("us", "UTC"),
            "pixels": pl.List(pl.Float64),
            "digit": pl.Int64,
        },
    )


@source(
    key=["image_id"],
    event_timestamp="scanned_at",
    partitions=daily,
    owners=OWNERS,
    schema={
        "image_id": String("Place of the image in the data set", max_null_share=0),
        "scanned_at": UnixTimestamp("When it is taken to be scanned", max_null_share=0),
        "pixels": PIXELS,
        "digit": DIGIT,
    },
)
def raw_digits(window: tuple[datetime, datetime] | None) -> pl.LazyFrame:
    """Scanned images of single digits, and what they show."""
    scanned = all_digits().lazy()
    return scanned if window is None else scanned.filter(pl.col("scanned_at").is_between(*window, closed="left"))


@labels(
    key="image_id",
    entities=[],
    partitions=daily,
    owners=OWNERS,
    request={"pixels": PIXELS},
    targets={"digit": DIGIT},
)
def digits(raw_digits: pl.LazyFrame) -> pl.LazyFrame:
    """One row an image: a class is wanted at the scan, and known when somebody typed it in."""
    return raw_digits.with_columns(event_timestamp="scanned_at", label_known_at=pl.col("scanned_at") + TYPED_IN)
