"""New data: one run a delivery, none for what is no delivery, and an answer that says which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mlops_assets.catalog import UnknownDeclarationError, gather
from mlops_assets.deliveries import UndeliverableError, deliver
from resources.environment import DAGSTER_URL
from resources.events import Inbox

if TYPE_CHECKING:
    from pathlib import Path

DAY, TABLE = "2013-07-10", "flights/raw_flights"
catalog = gather()


@pytest.fixture(autouse=True)
def alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No web server: what is told lies in the inbox."""
    monkeypatch.delenv(DAGSTER_URL, raising=False)


def told() -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(one.event.id, one.event.assets, one.event.partition) for one in Inbox().open("events")]


def test_a_delivery_told_twice_is_one() -> None:
    assert [deliver(catalog, TABLE, DAY, "7"), deliver(catalog, TABLE, DAY, "7")] == [None, None]
    assert told() == [(f"{TABLE}[{DAY}]:7", (TABLE,), DAY)]


def test_a_correction_under_an_id_of_its_own_is_another() -> None:
    deliver(catalog, TABLE, DAY, "7")
    deliver(catalog, TABLE, DAY, "8")
    assert len(told()) == 2


def test_without_an_id_news_that_wait_are_the_same_news() -> None:
    deliver(catalog, TABLE, DAY)
    deliver(catalog, TABLE, DAY)
    deliver(catalog, TABLE, "2013-07-11")
    assert [one[0] for one in told()] == [f"{TABLE}[{DAY}]#1", f"{TABLE}[2013-07-11]#1"]


@pytest.mark.parametrize(
    ("table", "partition", "says"),
    [
        (TABLE, "2031-01-01", r"no partition '2031-01-01' \(known: 2013-01-01 to"),
        (TABLE, None, "partitions, and none was given"),
        ("flights/weather_hourly", DAY, r"computed, not delivered \(from: flights/raw_weather"),
        ("flights/raw_planes", DAY, "has no partitions"),
    ],
)
def test_what_cannot_be_materialized_is_refused_with_what_can(table: str, partition: str | None, says: str) -> None:
    with pytest.raises(UndeliverableError, match=says):
        deliver(catalog, table, partition)
    assert told() == []


def test_an_unknown_table_is_named_with_the_next_best() -> None:
    with pytest.raises(UnknownDeclarationError, match="Did you mean 'flights/raw_flights'"):
        deliver(catalog, "flights/raw_flight", DAY)


def test_the_command_says_what_becomes_of_it() -> None:
    from mlops_assets.cli import app

    ran = CliRunner().invoke(app, ["notify", TABLE, DAY, "--id", "7"])
    assert ran.exit_code == 0 and "left to the sensor" in ran.output
    assert len(told()) == 1
