"""The history of a model: champion and traffic in one order of time, told in versions."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest

from mlops_assets.catalog import gather
from mlops_assets.history import Event, events
from resources.champions import ChampionStore
from resources.releases import ReleaseStore

MODEL = gather().model("flights/late_arrival")


class Registry:
    """An alias in memory."""

    version: str | None = None

    def alias(self, name: str, alias: str) -> str | None:
        return self.version

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.version = version


@pytest.fixture
def stores(tmp_path: Path) -> tuple[ReleaseStore, ChampionStore]:
    return ReleaseStore(tmp_path / "releases"), ChampionStore(tmp_path / "champions")


def test_a_model_without_a_past_has_no_history(stores):
    assert events(MODEL, *stores) == []


def test_champion_and_traffic_are_told_in_one_order(stores):
    """Who did what, from which versions to which, with their shares, and why."""
    releases, champions = stores
    registry = Registry()

    def crown(version: str) -> None:
        champions.move(registry, MODEL.id, MODEL.registered_name, version, by="run 1", why=f"passed as of {version}")

    crown("1")
    releases.start_canary(MODEL.id, "late:a", "1", [10, 100], by="run 1", why="first")
    crown("2")
    releases.start_canary(MODEL.id, "late:b", "2", [10, 100], by="run 2", why="new")
    releases.rollback(MODEL.id, by="ann", why="slower")
    told = events(MODEL, releases, champions)
    assert [event.at for event in told] == sorted(event.at for event in told)
    # What happened within a millisecond may be told in either order.
    assert sorted(astuple(event)[1:] for event in told) == sorted([
        ("run 1", "champion", "none", "version 1", "passed as of 1"),
        ("run 1", "release", "none", "version 1 100 %", "first"),
        ("run 1", "champion", "version 1", "version 2", "passed as of 2"),
        ("run 2", "start canary", "version 1 100 %", "version 1 90 %, version 2 10 %", "new"),
        ("ann", "rollback", "version 1 90 %, version 2 10 %", "version 1 100 %", "slower"),
    ])  # fmt: skip
    assert told[-1] == Event(
        told[-1].at, "ann", "rollback", "version 1 90 %, version 2 10 %", "version 1 100 %", "slower"
    )


def test_other_models_are_not_told(stores):
    releases, champions = stores
    releases.start_canary("flights/arrival_delay", "delay:a", "1", [100], by="ann", why="first")
    assert events(MODEL, releases, champions) == []
