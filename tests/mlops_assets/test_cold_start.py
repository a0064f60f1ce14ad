"""A stand-in is the average of the rows of its window, and of nothing else: not of the future, not of their order."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlops_assets import Bool, Constant, Entity, Float64, Float64Array, Int64, MeanOverEntities, Popularity, String
from mlops_assets.catalog import Catalog, asset_key
from mlops_assets.claims import claims, conform
from mlops_assets.cold_start import constant_values, stand_ins
from mlops_assets.declarations import DeclarationError, FeatureView, feature_view
from mlops_assets.links.online import online_key
from mlops_assets.pipeline import table_definitions

START, DAY = datetime(2013, 5, 1, tzinfo=UTC), timedelta(days=1)
WINDOW = 3 * DAY
thing = Entity("thing", "thing_id")
SCHEMA = {
    "uses": Int64("Uses"),
    "amount": Float64("Amount", minimum=-1e6, maximum=1e6),
    "maker": String("Maker"),
    "sound": Bool("Sound"),
    "place": Float64Array("Place", size=2),
}
COLUMNS = {"thing_id": pl.String(), "event_timestamp": pl.Datetime("us", "UTC")} | {
    name: field.polars for name, field in SCHEMA.items()
}


def view(cold_start: Any) -> FeatureView:
    @feature_view(entities=[thing], schema=SCHEMA, cold_start=cold_start)
    def things() -> pl.LazyFrame:
        """Things."""
        return pl.LazyFrame()

    return things  # type: ignore[return-value]


MEAN, POPULAR, PAID = (
    view(kind) for kind in (MeanOverEntities(WINDOW), Popularity("uses", WINDOW), Popularity("amount", WINDOW))
)
numbers = st.none() | st.just(math.nan) | st.floats(-1000, 1000).map(lambda number: round(number, 3))
moments = st.integers(0, 8 * 4).map(lambda quarter: START + quarter * timedelta(hours=6))
rows = st.fixed_dictionaries(
    {
        "uses": st.none() | st.integers(-1, 5),
        "amount": numbers | st.just(math.inf),
        "maker": st.none() | st.sampled_from(["BOEING", "AIRBUS", "EMBRAER"]),
        "sound": st.none() | st.booleans(),
        "place": st.none() | st.tuples(numbers, numbers).map(list),
    }
)
tables = st.dictionaries(st.tuples(st.sampled_from("abcde"), moments), rows, max_size=30).map(
    lambda found: [{"thing_id": key, "event_timestamp": at, **row} for (key, at), row in found.items()]
)


def table(given_rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(given_rows, schema=COLUMNS)


def made(given_rows: list[dict[str, Any]], of: FeatureView) -> list[dict[str, Any]]:
    return stand_ins(table(given_rows).lazy(), of).collect().to_dicts()


# -- the same again, in plain words


def finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def plainly(given_rows: list[dict[str, Any]], of: FeatureView) -> list[dict[str, Any]]:
    """What the module says, by loops over rows."""
    midnights = sorted({START + math.ceil((row["event_timestamp"] - START) / DAY) * DAY for row in given_rows})
    return [
        {"event_timestamp": at} | typical([row for row in given_rows if at - WINDOW < row["event_timestamp"] <= at], of)
        for at in midnights
    ]


def typical(window: list[dict[str, Any]], of: FeatureView) -> dict[str, Any]:
    kind = of.cold_start
    given_weights = [row[kind.by] if isinstance(kind, Popularity) else 1.0 for row in window]
    weights = [weight if finite(weight) and weight > 0 else 0.0 for weight in given_weights]

    def mean(values: list[float | None]) -> float | None:
        pairs = [(value, weight) for value, weight in zip(values, weights, strict=True) if finite(value) and weight]
        total = math.fsum(weight for _, weight in pairs)
        return math.fsum(value * weight for value, weight in pairs) / total if pairs else None

    def most_frequent(values: list[Any]) -> Any:
        counts: dict[Any, float] = defaultdict(float)
        for value, weight in zip(values, weights, strict=True):
            if value is not None and weight:
                counts[value] += weight
        return min(counts, key=lambda value: (-round(counts[value], 9), value)) if counts else None

    columns = {name: [row[name] for row in window] for name in SCHEMA}
    place = [mean([one[i] if one else None for one in columns["place"]]) for i in range(2)]
    uses = mean(columns["uses"])
    return {
        "uses": None if uses is None else round(uses, 6),
        "amount": mean(columns["amount"]),
        "maker": most_frequent(columns["maker"]),
        "sound": most_frequent(columns["sound"]),
        "place": None if None in place else place,
    }


def alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal, numbers but for rounding; a whole number is the nearest to the mean."""
    for name in ("event_timestamp", "maker", "sound"):
        assert one[name] == other[name], name
    assert one["amount"] == pytest.approx(other["amount"], abs=1e-9)
    assert one["place"] == pytest.approx(other["place"], abs=1e-9)
    assert (one["uses"] is None) == (other["uses"] is None)
    assert one["uses"] is None or abs(one["uses"] - other["uses"]) <= 0.5 + 1e-6


@pytest.mark.parametrize("of", [MEAN, POPULAR], ids=["mean", "popularity"])
@settings(max_examples=150)
@given(given_rows=tables)
def test_a_stand_in_is_the_average_of_its_window(of: FeatureView, given_rows: list[dict[str, Any]]) -> None:
    """Recomputed by loops: means, the most frequent, nulls where nothing counts; at each midnight that had news."""
    found, wanted = made(given_rows, of), plainly(given_rows, of)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        alike(one, other)


@pytest.mark.parametrize("of", [MEAN, POPULAR, PAID], ids=["mean", "popularity", "amount"])
@settings(max_examples=100)
@given(given_rows=tables, later=tables, random=st.randoms(use_true_random=False))
@example(given_rows=[], later=[], random=None)
def test_neither_later_rows_nor_their_order_matter(
    of: FeatureView, given_rows: list[dict[str, Any]], later: list[dict[str, Any]], random: Any
) -> None:
    """To the last bit: what was published for a midnight stays, whatever comes after it, in whatever order."""
    before = stand_ins(table(given_rows).lazy(), of).collect()
    if before.is_empty():
        return
    newest = before["event_timestamp"].max()
    everything = given_rows + [
        row | {"event_timestamp": row["event_timestamp"] + (newest - START) + timedelta(hours=1)} for row in later
    ]
    random.shuffle(everything)
    after = stand_ins(table(everything).lazy(), of).collect()
    assert after.filter(pl.col("event_timestamp") <= newest).equals(before)


@settings(max_examples=60)
@given(given_rows=tables, days=st.integers(0, 8))
def test_a_day_alone_is_the_day_of_a_backfill(given_rows: list[dict[str, Any]], days: int) -> None:
    """With the rows of its window only, the newest stand-in has the same bytes as with all rows before."""
    of, at = PAID, START + days * DAY
    past = table(given_rows).filter(pl.col("event_timestamp") <= at)
    window = past.filter(pl.col("event_timestamp") > at - WINDOW)
    here = pl.col("event_timestamp") == at
    long, short = (stand_ins(frame.lazy(), of).filter(here).collect() for frame in (past, window))
    assert long.equals(short)


@settings(max_examples=60)
@given(given_rows=tables)
def test_a_stand_in_keeps_the_bounds_of_its_view(given_rows: list[dict[str, Any]]) -> None:
    """Where every row may be published, so may what stands in for them: no rounding leads out of the bounds."""
    sane = table(given_rows).filter(pl.col("amount").is_finite(), pl.col("place").is_null())
    tight = {**SCHEMA, "amount": Float64("Amount", minimum=sane["amount"].min(), maximum=sane["amount"].max())}

    @feature_view(entities=[thing], schema=tight, cold_start=Popularity("amount", WINDOW))
    def things() -> pl.LazyFrame:
        """Things."""
        return pl.LazyFrame()

    stand_in = things.stand_in
    judged = claims(conform(stand_in(sane.lazy()), stand_in), stand_in)
    assert [claim.name for claim in judged if not claim.passed and claim.blocking] == []


def test_a_tenth_stays_a_tenth() -> None:
    """Three times 0.1, divided by three, is more than 0.1 to a computer; the average is not."""
    three = [{"thing_id": key, "event_timestamp": START, "amount": 0.1} for key in "abc"]
    assert sum(row["amount"] for row in three) / 3 > 0.1
    assert made(three, MEAN)[0]["amount"] == 0.1


# -- the declaration


def test_a_stand_in_is_a_table_like_any_other() -> None:
    """It reads its view over the window, has no key, and gets an offline and an online asset."""

    @feature_view(team="shop", entities=[thing], schema=SCHEMA, cold_start=MeanOverEntities(WINDOW))
    def things() -> pl.LazyFrame:
        """Things."""
        return pl.LazyFrame()

    catalog = Catalog.of([things])
    stand_in = catalog.view("shop/things_cold_start")
    assert stand_in.inputs == ("things",) and stand_in.lookback == WINDOW and not stand_in.entities
    assert "last 3 days" in stand_in.description and list(stand_in.schema) == list(SCHEMA)
    keys = {key for asset in table_definitions(catalog).assets for key in asset.keys}  # type: ignore[union-attr]
    assert {asset_key(stand_in), online_key(stand_in)} <= keys
    assert Catalog.of([*catalog.tables.values()]).tables == catalog.tables, "gathered again, it is the same"


def test_only_averages_have_a_table() -> None:
    """A constant needs none, and a view without a cold start has nothing that stands in."""
    constant = view(Constant({"amount": 7.0}))
    assert constant.stand_in is None and constant_values(constant) == {"amount": 7.0}
    assert view(None).stand_in is None and constant_values(view(None)) is None
    with pytest.raises(TypeError, match="has no average"):
        stand_ins(table([]).lazy(), constant)


@pytest.mark.parametrize("window", [timedelta(0), -DAY, timedelta(hours=36)])
def test_a_window_is_whole_days(window: timedelta) -> None:
    """A stand-in is made at midnight, of days: anything else would be another window than it says."""
    with pytest.raises(DeclarationError, match=r"cold_start.window.*whole days"):
        view(MeanOverEntities(window))


@pytest.mark.parametrize("sparse", [True, False])
def test_an_empty_day_of_a_sparse_view_is_no_news(sparse: bool) -> None:
    """Neither of the view nor of its stand-in; of any other view it is a warning."""

    @feature_view(team="shop", entities=[thing], schema=SCHEMA, cold_start=MeanOverEntities(WINDOW), sparse=sparse)
    def things() -> pl.LazyFrame:
        """Things."""
        return pl.LazyFrame()

    for of in (things, things.stand_in):
        empty = conform(stand_ins(table([]).lazy(), things) if of is not things else table([]).lazy(), of)
        (claim,) = [claim for claim in claims(empty, of) if claim.name == "not_empty"]
        assert claim.passed == sparse and not claim.blocking
