"""Frames of Polars as frames of Spark and back, by way of Arrow, for tests that compare the two."""

from __future__ import annotations

from typing import Any

import polars as pl

from resources.spark import session


def to_spark(frame: pl.DataFrame) -> Any:
    """Times of any unit in microseconds, which is all that Spark has."""
    import polars.selectors as cs

    plain = frame.with_columns(cs.datetime().dt.cast_time_unit("us"), cs.categorical().cast(pl.String))
    return session().createDataFrame(plain.to_arrow(compat_level=pl.CompatLevel.oldest()))


def from_spark(frame: Any, schema: pl.Schema | None = None) -> pl.DataFrame:
    made = pl.from_arrow(frame.toArrow())
    assert isinstance(made, pl.DataFrame)
    return made.cast(dict(schema)) if schema else made  # type: ignore[arg-type]
