"""How often a view had nothing to say: counted from receipts and from training rows, and judged against the limit."""

from __future__ import annotations

import json

import polars as pl
import pytest

from mlops_assets import Monitor
from mlops_assets.catalog import gather
from mlops_assets.fallbacks import in_answers, in_training, numbers, seldom, unaided

MODEL = gather().model("flights/arrival_delay").with_(features=gather().model("flights/arrival_delay").features[1:])
EMBEDDING, CONGESTION = "aircraft_embedding", "origin_congestion"


def receipts(*used: str | None) -> pl.DataFrame:
    """Answers whose embedding was found (None), or was replaced by what is named."""
    told = [
        [{"view": f"flights/{EMBEDDING}", "keys": {}, "reason": "no row", "used": one}] if one else [] for one in used
    ]
    return pl.DataFrame({"fallbacks": [json.dumps(one) for one in told]})


def test_answers_are_counted_by_what_their_receipts_say() -> None:
    """By view and by what was used; a view that was always there counts nothing."""
    shares = in_answers(MODEL, receipts(None, "cold start", "cold start", "nulls"))
    assert shares[EMBEDDING] == {"nulls": 0.25, "cold_start": 0.5}
    assert shares[CONGESTION] == {"nulls": 0.0, "cold_start": 0.0}
    assert numbers(shares)[f"fallback_share/{EMBEDDING}/cold_start"] == 0.5


def test_a_receipt_of_before_cold_starts_means_nulls() -> None:
    """It does not say what was used, for there was nothing else."""
    old = json.dumps([{"view": f"flights/{EMBEDDING}", "keys": {}, "reason": "no row"}])
    assert in_answers(MODEL, pl.DataFrame({"fallbacks": [old]}))[EMBEDDING] == {"nulls": 1.0, "cold_start": 0.0}


def test_no_answers_have_no_shares() -> None:
    assert in_answers(MODEL, pl.DataFrame(schema={"fallbacks": pl.String})) == {}


def training_rows() -> pl.DataFrame:
    """Four rows: the view's own, stood in for twice, and nothing at all; the congestion is missing from half."""
    names = [name for item in MODEL.selections for name in item.features]
    columns = {name: [1.0, None, 1.0, None] for name in names if name != "embedding"}
    vectors = pl.Series("embedding", [[1.0] * 8, [0.5] * 8, [0.5] * 8, None], pl.List(pl.Float64))
    return pl.DataFrame({**columns, "embedding": vectors, f"{EMBEDDING}__cold_start_used": [False, True, True, True]})


def test_training_rows_are_counted_alike() -> None:
    """A stand-in that was not there yet is nulls."""
    shares = in_training(MODEL, training_rows())
    assert shares[EMBEDDING] == {"nulls": 0.25, "cold_start": 0.5}
    assert shares[CONGESTION] == {"nulls": 0.5, "cold_start": 0.0}
    assert in_training(MODEL, training_rows().clear()) == {}


def test_unaided_rows_show_what_the_views_themselves_said() -> None:
    rows = unaided(MODEL, training_rows())
    assert rows["embedding"].is_null().to_list() == [False, True, True, True]
    assert rows.drop("embedding").equals(training_rows().drop("embedding"))


@pytest.mark.parametrize(("used", "passes"), [("cold start", False), ("nulls", False), (None, True)])
def test_a_view_that_is_mostly_missing_is_warned_of(used: str | None, passes: bool) -> None:
    """By name, with its rate and how much of it a cold start hid; up to the limit all is well."""
    rows, monitor = receipts(None, None, used, used, used), Monitor(min_rows=5)
    claim = seldom(monitor, in_answers(MODEL, rows), rows.height)
    assert claim.passed == passes and not claim.blocking
    assert passes or f"{EMBEDDING} had no usable row for 60% of 5 answers" in claim.reason
    generous = Monitor(min_rows=5, fallback_share=0.6)
    assert seldom(generous, in_answers(MODEL, rows), rows.height).passed


def test_a_few_answers_prove_nothing() -> None:
    rows = receipts("nulls", "nulls")
    claim = seldom(Monitor(min_rows=3), in_answers(MODEL, rows), rows.height)
    assert claim.passed and "fewer than 3" in claim.reason
