"""The tracking benchmark at toy size: its two sides answer alike, and both are measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import tracking


def test_both_sides_answer_alike_and_are_timed(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand runs and versions: six questions, an answer of ours that is not MLflow's would end it."""
    monkeypatch.setattr(tracking, "OURS_TIMES", 2)
    monkeypatch.setattr(tracking, "STOCK_TIMES", 2)
    figures, shown = tracking.scale_figures("sqlite", *tracking.sqlite_sides(tmp_path, 1000), 1000)
    names = {figure.name.removeprefix("tracking.sqlite.") for figure in figures}
    assert {"filter_by_metric", "order_by_metric", "latest_champion", "metric_history", "alias_flat"} <= names
    assert all(figure.ours > 0 and figure.peer > 0 for figure in figures) and shown.row_count == len(figures) - 1


def test_every_loop_logs_all_of_its_rounds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side's values are in MLflow when its time is told."""
    for name, value in {"ROUNDS": 5, "ROWS": 500, "TRAININGS": 1}.items():
        monkeypatch.setattr(tracking, name, value)
    figures, _ = tracking.loop_figures()
    assert [figure.name.rpartition(".")[2] for figure in figures] == [
        *("cpu", "wall", "against_synchronous", "against_asynchronous")
    ]
