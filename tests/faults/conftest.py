"""A platform with something to do at every link, made once and copied for each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

TESTS = Path(__file__).parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))  # `faults.dying` and the fixtures, here and in the processes

from conftest import FIRST_CUTOFF, _copied, _opened  # noqa: E402
from faults.day import DAY, NEXT_DAY, ask, filled  # noqa: E402

if TYPE_CHECKING:
    from conftest import Platform


@pytest.fixture(scope="session")
def open_day(first_champion: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released champion, a second version that passed its gate, a day of answers and labels, a day of raw data.

    Every link has something to do on it: never written to again, only copied.
    """
    root = _copied(first_champion, tmp_path_factory.mktemp("open-day") / "home")
    with _opened(root) as platform:
        filled(platform.fill(DAY, DAY))
        filled(platform.run("raw_flights", "raw_weather", partition=NEXT_DAY, model=False))
        ask(platform, DAY)
        filled(platform.run("predictions", partition=DAY))
        filled(platform.run("training_set", "candidate", partition=FIRST_CUTOFF))
    return root


@pytest.fixture
def shop(open_day: Path, tmp_path: Path) -> Iterator[Platform]:
    """The platform of `open_day`, in a home of the test's own."""
    with _opened(_copied(open_day, tmp_path / "home")) as platform:
        yield platform
