"""An embedding means the same every week, knows nothing of the future, and is the truncated SVD that it says it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_assets.flights.embedding import SIZE, aircraft_embedding, along, directions, visits
from feature_assets.flights.sources import all_flights
from mlops_assets.claims import claims, conform

WEEK, MONDAY = timedelta(weeks=1), datetime(2013, 9, 16, tzinfo=UTC)
KEYS = ["event_timestamp", "tailnum"]


@pytest.fixture(scope="module")
def flights() -> pl.DataFrame:
    """Real flights, seven weeks before and two after the Monday; in its week the patterns of the network swap."""
    near = pl.col("scheduled_departure").is_between(MONDAY - 7 * WEEK, MONDAY + 2 * WEEK)
    return all_flights().filter(near)


def computed(flights: pl.DataFrame) -> pl.DataFrame:
    return aircraft_embedding(flights.lazy()).collect().select(*KEYS, "embedding").sort(KEYS)


@pytest.fixture(scope="module")
def embeddings(flights: pl.DataFrame) -> pl.DataFrame:
    return computed(flights)


def at(frame: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    return frame.filter(pl.col("event_timestamp") == moment)


Week = tuple[list[str], list[str], np.ndarray]


@pytest.fixture(scope="module")
def weeks(flights: pl.DataFrame) -> dict[datetime, Week]:
    """The matrix of three Mondays, made another way: root of the share that each destination has of an airframe."""
    counted = visits(flights.filter(~pl.col("cancelled")).lazy()).collect()
    return {moment: shares(at(counted, moment)) for moment in (MONDAY - WEEK, MONDAY, MONDAY + WEEK)}


def shares(counts: pl.DataFrame) -> Week:
    wide = counts.pivot("dest", index="tailnum", values="flights").fill_null(0).sort("tailnum")
    dests = sorted(set(wide.columns) - {"tailnum"})
    matrix = wide.select(dests).to_numpy().astype(float)
    return wide["tailnum"].to_list(), dests, np.sqrt(matrix / matrix.sum(axis=1, keepdims=True))


def test_there_is_a_row_of_each_airframe_every_monday(weeks: dict[datetime, Week], embeddings: pl.DataFrame) -> None:
    """Of those that flew in the four weeks before; the declared shape, and every check of a published view holds."""
    assert set(embeddings["event_timestamp"].dt.weekday()) == {1}
    tails, _, _ = weeks[MONDAY]
    assert at(embeddings, MONDAY)["tailnum"].to_list() == tails and len(tails) > 2_000
    judged = claims(conform(embeddings.lazy(), aircraft_embedding), aircraft_embedding)
    assert all(claim.passed for claim in judged), judged


def test_it_is_the_truncated_svd(weeks: dict[datetime, Week], embeddings: pl.DataFrame) -> None:
    """As scikit-learn computes it, multiplied out and read along the fixed directions."""
    from sklearn.decomposition import TruncatedSVD

    _, dests, matrix = weeks[MONDAY]
    svd = TruncatedSVD(SIZE, algorithm="randomized", n_iter=60, random_state=1).fit(matrix)
    expected = svd.inverse_transform(svd.transform(matrix)) @ directions(dests)
    found = np.array(at(embeddings, MONDAY)["embedding"].to_list())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_the_same_flights_give_nearly_the_same_vector_next_week(
    weeks: dict[datetime, Week], embeddings: pl.DataFrame
) -> None:
    """Airframes that flew as the week before keep their place, however the network moved; others are far from them.

    The plain coordinates of the SVD do not: their signs, order and rotation are another week's.
    """
    kept, plain = [], []
    for moment in (MONDAY - WEEK, MONDAY):
        mine, later = steady(weeks[moment], weeks[moment + WEEK])
        now, then = (np.array(at(embeddings, when)["embedding"].to_list()) for when in (moment, moment + WEEK))
        moved = np.linalg.norm(now[mine] - then[later], axis=1)
        apart = np.linalg.norm(now[mine] - np.roll(then[later], 1, axis=0), axis=1)
        assert len(mine) > 300 and np.median(moved) < 0.15 * np.median(apart)
        kept.append(np.median(cosines(now[mine], then[later])))
        plain.append(np.median(cosines(coordinates(weeks[moment])[mine], coordinates(weeks[moment + WEEK])[later])))
    assert min(kept) > 0.99
    assert min(plain) < 0.9, "the plain coordinates would pass as well: this shows nothing"


def steady(one_week: Week, next_week: Week) -> tuple[list[int], list[int]]:
    """The airframes that flew alike in the four weeks before a Monday and before the next: their rows in both."""
    (tails, dests, before), (next_tails, next_dests, after) = one_week, next_week
    both = [name for name in dests if name in next_dests]
    before, after = before[:, [dests.index(n) for n in both]], after[:, [next_dests.index(n) for n in both]]
    places = {tail: place for place, tail in enumerate(tails)}
    pairs = [(places[tail], place) for place, tail in enumerate(next_tails) if tail in places]
    alike = [(one, other) for one, other in pairs if before[one] @ after[other] > 0.99]
    return [one for one, _ in alike], [other for _, other in alike]


def coordinates(week: Week) -> np.ndarray:
    """Where the SVD itself puts each row, its signs made deterministic as is usual: the largest loading positive."""
    left, strength, patterns = np.linalg.svd(week[2], full_matrices=False)
    signs = np.sign(patterns[range(SIZE), np.abs(patterns[:SIZE]).argmax(axis=1)])
    return (left * strength)[:, :SIZE] * signs


def test_an_embedding_knows_nothing_of_the_future(flights: pl.DataFrame, embeddings: pl.DataFrame) -> None:
    """Rows up to a Monday are equal, to the bit, to those of who knew only the outcomes of that moment."""
    landed = pl.col("arrival") <= MONDAY
    known = flights.filter(pl.col("scheduled_departure") < MONDAY).with_columns(
        arrival=pl.when(landed).then("arrival"), arr_delay=pl.when(landed).then("arr_delay")
    )
    assert known["arrival"].null_count() - known["cancelled"].sum() > 0, "somebody is in the air at midnight"
    past = pl.col("event_timestamp") <= MONDAY
    assert computed(known).filter(past).equals(embeddings.filter(past))


def test_a_day_alone_is_the_day_of_a_backfill(flights: pl.DataFrame, embeddings: pl.DataFrame) -> None:
    """From the rows of its lookback, in any order, to the bit."""
    start = MONDAY - aircraft_embedding.lookback
    window = flights.filter(pl.col("scheduled_departure").is_between(start, MONDAY, closed="left"))
    alone = computed(window.sample(fraction=1, shuffle=True, seed=3))
    assert at(alone, MONDAY).equals(at(embeddings, MONDAY))


def test_a_direction_is_the_same_for_ever() -> None:
    """It depends on the destination's code alone: written down here, so that a change of it is noticed."""
    np.testing.assert_allclose(directions(["LAX"])[0, :3], [0.1608835, -0.3310032, 0.2274594], atol=1e-6)
    assert (directions(["LAX", "SFO"])[0] == directions(["BOS", "LAX"])[1]).all()
    lengths = np.linalg.norm(directions([f"{number:03d}" for number in range(1000)]), axis=1)
    assert lengths.mean() == pytest.approx(1, abs=0.05)


shapes = st.tuples(st.integers(1, 14), st.integers(1, 12))


@settings(max_examples=60)
@given(shape=shapes, seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 6))
def test_any_network_has_an_embedding(shape: tuple[int, int], seed: int, rank: int) -> None:
    """Smaller than the embedding, or of few patterns: the nearest matrix of eight patterns along the axes."""
    from scipy.sparse import csr_array

    random = np.random.default_rng(seed)
    matrix = np.abs(random.normal(size=(shape[0], rank)) @ random.normal(size=(rank, shape[1])))
    axes = directions([str(number) for number in range(shape[1])])
    left, strength, patterns = np.linalg.svd(matrix, full_matrices=False)
    expected = (left[:, :SIZE] * strength[:SIZE]) @ patterns[:SIZE] @ axes
    np.testing.assert_allclose(along(csr_array(matrix), axes), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_flights_make_hardly_any_rows(rows: int, flights: pl.DataFrame) -> None:
    """No flight makes an empty table of the declared types; one flight four rows, along its destination."""
    flown: Any = computed(flights.filter(pl.col("arrival").is_not_null()).head(rows))
    assert flown.schema["embedding"] == pl.List(pl.Float64) and flown.height == 4 * rows
    if rows:
        dest = flights.filter(pl.col("arrival").is_not_null())["dest"][0]
        np.testing.assert_allclose(flown["embedding"][0].to_list(), directions([dest])[0])
