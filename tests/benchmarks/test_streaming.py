"""The streaming benchmark at toy size: both sides leave the same rows, or nothing is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import streaming
from benchmarks.harness import UnequalResultsError


def test_both_sides_leave_the_same_rows(home: Path) -> None:
    """Two days of weather, timed on both sides; nothing is left in the user's home."""
    measured = streaming.measure(rounds=1, days=2, live_days=2)
    assert [figure.name for figure in measured.figures] == ["streaming.backlog", "streaming.live"]
    assert all(figure.ours > 0 and figure.peer > 0 for figure in measured.figures)
    assert measured.details[0].row_count == 2
    assert not home.exists()


def test_files_that_differ_are_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row less on one side is noticed."""
    monkeypatch.setattr(streaming, "ours", lambda _events, _batch: (1.0, [[], []]))
    with pytest.raises(UnequalResultsError, match="every row"):
        streaming.measure(rounds=1, days=1, live_days=1)
