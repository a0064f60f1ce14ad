"""A second look before a verdict, and a verdict about one revision alone."""

from __future__ import annotations

import pytest

from mlops_assets.serving.releases import failures
from mlops_assets.serving.releases.failures import Failure, Failures

MODEL, TAG = "flights/late_arrival", "m:2"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Failures:
    """Without a pause between the tries."""
    monkeypatch.setattr(failures, "monotonic", lambda: 100.0)
    return Failures()


def test_it_is_tried_again_after_a_pause_and_then_it_is_final(known: Failures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at once, not for ever; only what is final is told."""
    assert known.add(MODEL, TAG, 5, "gone"), "the first"
    assert known.bars(MODEL, TAG, 5) and known.due() == [] and known.to_tell(MODEL) == []
    monkeypatch.setattr(failures, "monotonic", lambda: 102.0)
    assert not known.bars(MODEL, TAG, 5) and len(known.due()) == 1
    assert not known.add(MODEL, TAG, 5, "still gone")
    (failure,) = known.to_tell(MODEL)
    assert known.bars(MODEL, TAG, 5) and failure.reason == "still gone"
    failure.told = True
    monkeypatch.setattr(failures, "monotonic", lambda: 1000.0)
    assert known.due() == [] and known.to_tell(MODEL) == [] and known.bars(MODEL, TAG, 5)


def test_another_revision_is_another_chance(known: Failures) -> None:
    """Also for a release that was condemned."""
    known.condemn(Failure(MODEL, TAG, 5, "too slow", "circuit breaker"))
    assert known.bars(MODEL, TAG, 5) and not known.bars(MODEL, TAG, 6)
    known.forget_older(MODEL, 6)
    assert known.of(MODEL, TAG, 5) is None and known.reasons(MODEL, 5) == {}


def test_what_works_again_is_forgotten(known: Failures) -> None:
    """Nothing is left of it to be told."""
    known.add(MODEL, TAG, 5, "gone")
    assert known.reasons(MODEL, 5) == {TAG: "gone"}
    known.clear(MODEL, TAG)
    assert known.reasons(MODEL, 5) == {}


def test_trouble_of_one_process_is_put_off(known: Failures, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not told, and tried again for as long as it takes."""
    known.condemn(Failure(MODEL, TAG, 5, "gone"))
    known.to_tell(MODEL)[0].put_off()
    assert known.to_tell(MODEL) == [] and known.bars(MODEL, TAG, 5)
    monkeypatch.setattr(failures, "monotonic", lambda: 111.0)
    assert not known.bars(MODEL, TAG, 5)
