"""The artifacts benchmark at toy size: both sides hold the same model, and both are measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks import artifacts


def test_both_sides_save_read_and_pack_the_same_model(home: Path) -> None:
    """Two saves and a Bento are stored once by us, three times by the peer; nothing is left in the user's home."""
    figures = {figure.name: figure for figure in artifacts.measure(rounds=1, megabytes=3).figures}
    assert all(figure.ours > 0 and figure.peer > 0 for figure in figures.values())
    stored = figures["artifacts.two_saves_and_a_bento"]
    assert 3 <= stored.ours < 3.1 and 9 <= stored.peer < 9.1 and stored.meets
    assert not home.exists()
