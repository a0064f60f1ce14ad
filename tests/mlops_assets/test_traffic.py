"""The traffic as it is told: since when each variant has what it has, and what the table does not show."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets.traffic import remarks, reports, standings
from resources.releases import InvalidReleaseError, ReleaseStore, UnknownReleaseError
from resources.serving_status import ServingStatus

MODEL = "flights/late_arrival"
STEPS = [10, 50, 100]


@pytest.fixture
def releases(tmp_path: Path) -> ReleaseStore:
    store = ReleaseStore(tmp_path)
    store.start_canary(MODEL, "b:1", "1", STEPS, by="first", why="")
    return store


def since(releases: ReleaseStore) -> dict[str, str]:
    """By version, by whom it has what it has."""
    record = releases.current(MODEL)
    return {one.variant.version: one.change.by for one in standings(record, releases.history(MODEL))}


def told(releases: ReleaseStore) -> str:
    return " ".join(remarks(releases.current(MODEL)))


def test_a_variant_stands_since_the_change_that_gave_it_its_share(releases: ReleaseStore) -> None:
    """Not since the last change, which may be about another one."""
    releases.start_canary(MODEL, "b:2", "2", STEPS, by="canary", why="")
    releases.shadow(MODEL, "b:3", "3", by="shadow", why="")
    assert since(releases) == {"1": "canary", "2": "canary", "3": "shadow"}
    releases.advance(MODEL, by="step", why="")
    assert since(releases) == {"1": "step", "2": "step", "3": "shadow"}
    releases.rollback(MODEL, by="back", why="")
    assert since(releases) == {"1": "back", "3": "shadow"}, "it had all traffic before, but not all the time"


acts = st.lists(
    st.tuples(st.sampled_from(["canary", "split", "shadow", "back", "none"]), st.integers(1, 3)), max_size=8
)


@settings(max_examples=30)
@given(acts)
def test_every_variant_stands_as_told_since_the_change_that_is_told(taken: list[tuple[str, int]]) -> None:
    """Before it the variant was not so, and after it always."""
    with TemporaryDirectory() as folder:
        store = ReleaseStore(Path(folder))
        store.start_canary(MODEL, "b:0", "0", STEPS, by="", why="")
        for act, number in taken:
            release, version = f"b:{number}", str(number)
            try:
                if act == "canary":
                    store.start_canary(MODEL, release, version, STEPS, by="", why="")
                elif act == "split":
                    store.split(MODEL, release, version, 20, by="", why="")
                elif act == "shadow":
                    store.shadow(MODEL, release, version, by="", why="")
                else:
                    (store.rollback if act == "back" else store.unshadow)(MODEL, by="", why="")
            except (InvalidReleaseError, UnknownReleaseError):
                continue
        history = store.history(MODEL)
        for one in standings(store.current(MODEL), history):
            assert all(one.variant in change.after for change in history[one.change.revision - 1 :])
            assert one.variant not in one.change.before


def test_remarks_say_where_a_canary_goes_and_what_ends_it(releases: ReleaseStore) -> None:
    releases.start_canary(MODEL, "b:2", "2", STEPS, by="x", why="")
    releases.advance(MODEL, by="x", why="")
    assert "step 2 of 3 (10, 50, 100 %)" in told(releases) and "over 1.0% of its requests" in told(releases)
    assert "A rollback leads to the champion alone." in told(releases)


def test_remarks_say_what_was_taken_out_by_whom_and_why(releases: ReleaseStore) -> None:
    releases.start_canary(MODEL, "b:2", "2", STEPS, by="x", why="")
    releases.refuse(MODEL, 2, "b:2", by="serving process a-7", why="too slow", action="circuit breaker")
    assert "challenger b:2 (version 2) was taken out by serving process a-7: too slow" in told(releases)
    assert "no release before it" in told(releases)


def test_remarks_say_where_a_rollback_leads(releases: ReleaseStore) -> None:
    releases.release(MODEL, "b:2", "2", by="x", why="")
    assert told(releases) == "A rollback leads to version 1."
    releases.split(MODEL, "b:3", "3", 20, by="x", why="")
    assert told(releases) == "An A/B split: it stays until somebody changes it. A rollback leads to the champion alone."


def test_a_process_that_is_behind_says_so(releases: ReleaseStore) -> None:
    """And one that serves nothing yet, and one that refuses."""
    at = datetime.now(UTC) - timedelta(seconds=3)
    champion = {"role": "champion", "release": "b:1", "version": "1", "weight": 100}
    refused = ({"release": "b:2", "reason": "no model file"},)
    releases.release(MODEL, "b:2", "2", by="x", why="")
    found = [ServingStatus("a", 1, None, (), (), at), ServingStatus("a", 2, 1, (champion,), refused, at)]
    assert [cells[:4] for cells in reports(releases.current(MODEL), found)] == [
        ("a-1", "none, 2 is to come", "nothing", ""),
        ("a-2", "1, 2 is to come", "champion version 1 100 %", "b:2: no model file"),
    ]
