"""A short year, all of it real: daemons, endpoint, deliveries and every incident; its claims are the test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resources.environment import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Twelve days, as `mlops year` replays them, and where their state lies."""
    root = tmp_path_factory.mktemp("year") / "home"
    ran = subprocess.run(
        [sys.executable, "-m", "mlops_assets.cli", "year", "--days", "12", "--no-rivals"],
        cwd=PROJECT,
        env={**os.environ, "MLOPS_HOME": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran, root.with_name("home.year")


def test_every_claim_about_a_short_year_holds(replayed) -> None:
    """Nothing is lost or doubled, nothing promoted past its gate, nothing retrained without a cause; outage, duplicate,
    correction and bad release came to what they must.
    """
    ran, root = replayed
    judged = json.loads((root / "year.json").read_text()) if (root / "year.json").exists() else []
    assert len(judged) > 10, ran.stdout[-2000:] + ran.stderr[-2000:]
    assert [one for one in judged if not one["holds"]] == []
    assert ran.returncode == 0


def test_the_year_says_what_it_came_to(replayed) -> None:
    """A page, a picture, and a journal of every day."""
    _, root = replayed
    assert "## Versions" in (root / "year.md").read_text()
    assert (root / "year.png").read_bytes().startswith(b"\x89PNG")
    assert len((root / "year.jsonl").read_text().splitlines()) == 12


def test_other_days_are_not_mixed_into_a_replay(replayed) -> None:
    """Its incidents would lie elsewhere, some of them in the past."""
    _, root = replayed
    ran = subprocess.run(
        [sys.executable, "-m", "mlops_assets.cli", "year", "--days", "13"],
        cwd=PROJECT,
        env={**os.environ, "MLOPS_HOME": str(root.with_name("home"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1 and "2013-04-01 to 2013-04-12" in ran.stderr and "--fresh" in ran.stderr
