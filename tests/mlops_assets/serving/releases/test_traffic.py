"""Who answers whom: sticky by key, in the stated shares, and whole requests at no cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_assets.serving.releases.traffic import Traffic, bucket_of
from mlops_assets.serving.wire.raw import Rows
from resources.releases import Variant

MODEL = "flights/late_arrival"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
RELEASE: Any = SimpleNamespace(plan=SimpleNamespace(join_keys=("origin", "dest")))
values = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1), st.none())


def traffic(weight: int | None) -> Traffic:
    """A champion, and a challenger of that weight unless None."""
    champion = (Variant("b:1", "1", 100 - (weight or 0)), RELEASE)
    return Traffic((champion,) if weight is None else ((Variant("b:2", "2", weight, "challenger"), RELEASE), champion))


def rows(*keys: Sequence[Any]) -> Rows:
    return Rows([dict(zip(("origin", "dest"), key, strict=False)) for key in keys], NOON)


def roles(split: Traffic, raw: Rows) -> list[str]:
    """The role that answers each row."""
    by_place = {
        place: variant.role
        for variant, _, places in split.split(MODEL, raw)
        for place in (range(raw.size) if places is None else places)
    }
    assert sorted(by_place) == [*range(raw.size)], "a row was asked of nobody, or of two"
    return [by_place[place] for place in range(raw.size)]


def test_one_variant_gets_all_rows_as_they_are() -> None:
    """Nothing is hashed, nothing is split: None stands for all."""
    ((variant, _, places),) = traffic(None).split(MODEL, rows(("EWR", "BOS"), ("JFK", "LAX")))
    assert (variant.version, places) == ("1", None)


@given(keys=st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_each_row_is_answered_once_by_the_variant_of_its_key(keys: list[tuple[Any, ...]]) -> None:
    """Alone or among others, a key gets the same variant."""
    named = [key for key in keys if key != (None, None)]
    if named:
        together = roles(traffic(50), rows(*named))
        assert together == [roles(traffic(50), rows(key))[0] for key in named]


@given(keys=st.lists(values, min_size=1, max_size=2).filter(lambda keys: any(key is not None for key in keys)))
def test_a_key_stays_in_a_growing_canary(keys: list[Any]) -> None:
    """Who is in the canary at 10 % is in it at 50 % and 100 %."""
    chosen = [roles(traffic(weight), rows(keys))[0] for weight in (0, 10, 50, 100)]
    assert chosen == sorted(chosen, reverse=True)
    assert (chosen[0], chosen[-1]) == ("champion", "challenger")


@pytest.mark.parametrize("weight", [1, 10, 50, 90])
@pytest.mark.parametrize("named", [True, False])
def test_traffic_is_split_as_stated(weight: int, *, named: bool) -> None:
    """Over many keys the share is the weight (within 5 standard deviations of a fair draw); so it is for rows that
    name no key, which would all go one way if their empty key were hashed."""
    keys, share = 20_000, weight / 100
    asked = rows(*(((f"N{n}", "BOS") if named else ()) for n in range(keys)))
    counted = Counter(roles(traffic(weight), asked))
    assert abs(counted["challenger"] - keys * share) < 5 * (keys * share * (1 - share)) ** 0.5


def test_models_draw_their_canaries_apart() -> None:
    """One key is not in the canary of every model."""
    buckets = [bucket_of(f"team/model_{n}", ["N1"]) for n in range(50)]
    assert len({bucket // 10 for bucket in buckets}) > 5


@pytest.mark.parametrize("odd", [b"bytes", {"a": 1}, [1, 2], 2**80, float("nan"), NOON, "\ud800"])
def test_a_key_that_is_none_finds_its_way_too(odd: Any) -> None:
    """It is refused by the release that it falls to, with a reason, and not by a crash before."""
    assert bucket_of(MODEL, [odd]) == bucket_of(MODEL, [odd])
    assert roles(traffic(50), rows((odd, "BOS"))) == roles(traffic(50), rows((odd, "BOS")))


@dataclass
class Watched:
    """Rows that count how often a column is asked for."""

    rows: Rows
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        return self.rows.size

    def column(self, name: str) -> Sequence[Any]:
        self.asked[name] += 1
        return self.rows.column(name)


def test_a_batch_is_read_by_columns() -> None:
    """Each key column once, however many rows."""
    raw = Watched(rows(*itertools.product(map(str, range(30)), map(str, range(30)))))
    assert len(traffic(50).split(MODEL, raw)) == 2
    assert raw.asked == {"origin": 1, "dest": 1}
