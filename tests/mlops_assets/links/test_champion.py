"""The champion is the newest version that passed its gate; it moves once, and every move is on record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from resources.mlflow import MlflowResource

if TYPE_CHECKING:
    from conftest import Platform

CUTOFF = "2013-07-01"


def test_materializing_again_moves_nothing(platform: Platform) -> None:
    """The alias, its history and the version stay; the asset says that nothing moved."""
    before = platform.published
    ran = platform.run("champion")
    assert ran.ok and ran.facts["champion"]["moved"] is False and platform.published == before


def test_without_a_version_that_passed_there_is_no_champion(platform: Platform) -> None:
    """The failure names the model and where to look; no alias is set."""
    other = platform.declared(name="untrained")
    ran = other.run("champion", "bento", "endpoint")
    assert not ran.ok and "No version of model 'flights/untrained' passed its gate" in ran.trouble
    assert other.published == {**other.published, "alias": None, "moves": [], "release": None}


def test_a_version_that_was_rolled_back_is_not_crowned_again(platform: Platform) -> None:
    """Not by itself; a newer one that passes is."""
    assert platform.train(CUTOFF).ok and platform.published["alias"] == "2"
    platform.promotion.rollback(platform.model, by="ann", why="it was slow")
    assert platform.published["alias"] == "1"
    assert platform.run("champion").ok and platform.published["alias"] == "1"
    assert platform.run("candidate", "champion", partition=CUTOFF).ok and platform.published["alias"] == "3"
    assert [move.after for move in platform.published["moves"]] == ["1", "2", "1", "3"]


def test_a_move_that_breaks_off_is_completed_by_the_next(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between writing the move down and setting the alias: readers still see the old champion, then the new one."""
    assert platform.run("candidate", partition=CUTOFF).ok
    with monkeypatch.context() as patched:

        def broken(*_: object) -> None:
            raise ConnectionError("MLflow went away")

        patched.setattr(MlflowResource, "set_alias", broken)
        ran = platform.run("champion")
    assert not ran.ok and "MLflow went away" in ran.trouble and platform.published["alias"] == "1"
    assert platform.run("champion").ok and platform.published["alias"] == "2"
