"""A clock that is set back: what is ordered is ordered by numbers and by the data, and never told out of order."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from faults.day import DAY, ask, drifted
from faults.seen import agreed

if TYPE_CHECKING:
    from conftest import Platform

BACK = timedelta(hours=3)


class SetBack(datetime):
    """What the processes of a machine see whose clock was set back."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) - BACK


@pytest.fixture
def set_back(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the clock of the stores back from now on."""

    def turn() -> None:
        for module in ("resources.release_record", "resources.champions", "resources.decisions"):
            monkeypatch.setattr(f"{module}.datetime", SetBack)

    return turn


def test_releases_and_champions_stay_in_order(shop: Platform, set_back: Any) -> None:
    """A release, its promotion and a rollback after the clock was set back: no change is told to be before another."""
    set_back()
    promotion, model = shop.promotion, shop.model
    promotion.promote(model, "2", by="ann", why="it is better")
    promotion.rollback(model, by="ann", why="it is not")
    agreed(shop)
    now = shop.published
    assert now["alias"] == now["release"].champion.version == "1"
    assert [change.action for change in now["changes"]] == ["release", "promote", "rollback"]
    for moments in ([change.at for change in now["changes"]], [move.at for move in now["moves"]]):
        assert moments == sorted(moments)


def test_a_decision_to_retrain_and_its_key_come_from_the_data_alone(shop: Platform, set_back: Any) -> None:
    """The same report asks for the same run before and after; and it is still asked for once."""
    drifted(shop)
    before = shop.tick("retrain").run_requests
    set_back()
    shop.cursors.clear()
    after = shop.tick("retrain").run_requests
    assert {request.run_key for request in after} <= {request.run_key for request in before} and len(before) == 1


def test_answers_are_each_there_once_in_the_order_of_their_writer(
    shop: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint numbers its answers: a clock that jumps back between two of them loses, doubles and swaps none."""
    with monkeypatch.context() as patch:
        ask(shop, DAY, fresh=False)
        now = time.time
        patch.setattr("time.time", lambda: now() - BACK.total_seconds())
        patch.setattr("mlops_assets.serving.prediction_log.writer.datetime", SetBack)
        ask(shop, DAY, fresh=False)
    ran = shop.run("predictions", partition=DAY)
    assert ran.ok and ran.checks["no_gap"].passed
    rows = shop.resources["lake"].scan("flights/late_arrival/predictions", [DAY]).collect()
    assert not rows.select("writer", "seq").is_duplicated().any()
    assert all(part["seq"].to_list() == list(range(part.height)) for _, part in rows.group_by("writer"))


def test_a_table_is_replaced_whatever_the_time(shop: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late correction that is written with an older time than the file it replaces is what readers see."""
    path = shop.resources["lake"].path("flights/raw_flights", DAY)
    os.utime(str(path), (time.time() + 86_400,) * 2)
    corrected = shop.resources["lake"].scan("flights/raw_flights", [DAY]).collect().head(10)
    shop.resources["lake"].write(corrected, "flights/raw_flights", DAY)
    assert shop.resources["lake"].scan("flights/raw_flights", [DAY]).collect().equals(corrected)
