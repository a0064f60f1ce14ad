"""A file of the lake that was damaged: it is named, with what to do, nothing is made of it, and doing so mends it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import FIRST_CUTOFF
from faults.seen import seen

if TYPE_CHECKING:
    from conftest import Platform

DAY = "2013-07-01"


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


# By reader: what reads it, the table that is damaged, and its partition.
READERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "feature view": ({"names": ["offline/weather_hourly"], "partition": DAY, "model": False}, "raw_weather", DAY),
    "training set": ({"names": ["training_set"], "partition": FIRST_CUTOFF}, "arrivals", "2013-06-20"),
    "candidate": ({"names": ["candidate"], "partition": FIRST_CUTOFF}, "late_arrival/training_set", FIRST_CUTOFF),
    "scores": ({"names": ["scores"], "partition": DAY}, "arrivals", DAY),
    "drift report": ({"names": ["drift_report"], "partition": DAY}, "late_arrival/predictions", DAY),
}


@pytest.mark.parametrize("damage", [cut_off, emptied])
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_named_and_nothing_is_made_of_it(shop: Platform, reader: str, damage: Any) -> None:
    """The error names the file, the table and the partition to materialize again; what it would have fed stands."""
    said, table, partition = READERS[reader]
    options = {name: value for name, value in said.items() if name != "names"}
    path = Path(str(shop.resources["lake"].path(f"flights/{table}", partition)))
    whole = path.read_bytes()
    before = seen(shop)
    damage(path)
    ran = shop.run(*said["names"], **options)
    assert not ran.ok
    assert str(path) in ran.trouble and re.search(f"materialize partition '{partition}' of", ran.trouble), ran.trouble
    path.write_bytes(whole)
    assert seen(shop) == before
