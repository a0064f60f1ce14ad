"""What a published array promises: its length, and numbers within their bounds at every place."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from mlops_assets import Entity, FeatureView, Float64Array
from mlops_assets.claims import SchemaError, claims, conform

shape = FeatureView(
    name="shape",
    team="shops",
    schema={"vector": Float64Array("Where it is", size=2, minimum=-1, maximum=1)},
    compute=pl.LazyFrame,
    entities=(Entity("shop", "shop"),),
)


def rows(*vectors: object, dtype: pl.DataType | None = None) -> pl.LazyFrame:
    frame = pl.DataFrame({"vector": pl.Series(vectors, dtype=dtype or pl.List(pl.Float64))}).lazy()
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    return frame.with_columns(shop=pl.int_range(pl.len()).cast(pl.String), event_timestamp=pl.lit(moment))


@pytest.mark.parametrize(
    ("vector", "passed"),
    [
        ([0.5, -1.0], True),
        (None, True),
        ([0.5], False),
        ([0.5, 0.5, 0.5], False),
        ([0.5, None], False),
        ([float("nan"), 0.5], False),
        ([0.5, float("inf")], False),
        ([0.5, 1.5], False),
    ],
)
def test_every_place_of_an_array_is_judged(vector: object, passed: bool) -> None:
    """One good row beside it changes nothing; a missing array is a missing value, judged elsewhere."""
    judged = {claim.name: claim for claim in claims(conform(rows([0.0, 0.0], vector), shape), shape)}
    assert judged["in_bounds"].passed is passed
    assert passed or "vector: 1 values outside [-1, 1]" in judged["in_bounds"].reason


def test_an_array_may_come_in_polars_own_form_and_nothing_else() -> None:
    fixed = conform(rows([0.0, 0.5], dtype=pl.Array(pl.Float64, 2)), shape)
    assert fixed["vector"].to_list() == [[0.0, 0.5]]
    with pytest.raises(SchemaError, match="column 'vector' is String, declared as Float64Array"):
        conform(rows("0.0, 0.5", dtype=pl.String()), shape)
