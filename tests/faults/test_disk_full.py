"""A disk that is full: what was published stands, the error says so, and with room again the same run succeeds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import FIRST_CUTOFF
from faults.dying import Do, ended
from faults.seen import noticed, seen, unfinished
from faults.works import Cramped

if TYPE_CHECKING:
    from conftest import Platform

DAY, THIRD_DAY = "2013-07-01", "2013-07-03"
NO_ROOM = 50_000
WORK = {
    "raw source": Do("run", "raw_flights", partition=THIRD_DAY, model=False),
    "training set": Do("run", "training_set", partition=FIRST_CUTOFF),
    "candidate": Do("run", "candidate", partition=FIRST_CUTOFF),
    "predictions": Do("run", "predictions", partition=DAY),
    "scores": Do("run", "scores", partition=DAY),
    "drift report": Do("run", "drift_report", partition=DAY),
}


@pytest.mark.parametrize("link", WORK)
def test_a_link_that_finds_no_room_changed_nothing(shop: Platform, link: str) -> None:
    """No file may grow, neither tables nor databases nor logs; the process ends by itself and says that it failed."""
    before, begun = seen(shop), unfinished(shop.home)
    assert ended(shop.home, Cramped(WORK[link], NO_ROOM)) == 1
    assert seen(shop) == before
    noticed(shop)
    again = WORK[link](shop)
    assert again.ok, again.trouble
    assert unfinished(shop.home) <= begun
    assert not shop.mlflow_runs("RUNNING")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk; the other tests bound files instead")
def test_a_full_lake_is_named_and_leaves_no_half_file(shop: Platform) -> None:
    """The lake's own disk, and really full: the run's error is the system's, about the file that had no room."""
    place = shop.home / "lake" / "flights" / "raw_flights"
    table = Do("run", "raw_flights", partition=THIRD_DAY, model=False)
    with full_disk(place):
        ran = table(shop)
        assert not ran.ok and "No space left on device" in ran.trouble
        assert not [path for path in place.iterdir() if path.name != "filler"]
    assert table(shop).ok


@contextmanager
def full_disk(place: Path) -> Iterator[None]:
    """A disk of 64 KiB mounted over a directory, with no room left on it."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False)
    if mounted.returncode:
        pytest.skip("this root may not mount")
    try:
        (place / "filler").write_bytes(b"x" * 60_000)
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)
