"""The drift benchmark at toy size: equal first, then timed; a difference is never timed."""

from __future__ import annotations

import pytest

from benchmarks import drift
from benchmarks.harness import UnequalResultsError


def test_every_kind_of_column_is_equal_to_evidentlys_and_both_sides_are_timed() -> None:
    """All twenty columns, on one thread and on all."""
    measured = drift.measure(rows=4000)
    assert {figure.unit for figure in measured.figures} == {"s", "CPU s"}
    assert all(0 < figure.ours < figure.peer for figure in measured.figures)
    assert drift.answers(10, moved=0.0).width == 20


def test_another_index_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A millionth and a half is too far."""
    theirs, spent = drift.evidently_psi(drift.answers(4000, moved=0.0), drift.answers(4000, moved=0.1))
    far = {name: value + 1.5e-6 for name, value in theirs.items()}
    monkeypatch.setattr(drift, "evidently_psi", lambda *_: (far, spent))
    with pytest.raises(UnequalResultsError, match="number_0"):
        drift.measure(rows=4000)
