"""What the two reports share: the trailing window of answers, and the release they are held against."""

import json
import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mlops_assets.claims import Claim
from mlops_assets.declarations import ModelPipeline
from resources.environment import DEFAULT_REPORTS_URL, REPORTS_URL, home

if TYPE_CHECKING:
    import polars as pl

    from resources.bentos import BentoStore


NOTHING_TO_JUDGE: Mapping[str, Any] = {"rows": 0, "verdict": "not enough rows"}


def nothing_to_judge(check: str) -> Claim:
    """What a check says of a window without answers: nothing."""
    return Claim(check, True, "No answers in the window", blocking=False, numbers=NOTHING_TO_JUDGE)


def trailing(model: ModelPipeline) -> dg.TimeWindowPartitionMapping:
    """The days of the monitoring window, up to and including the report's own day."""
    days = ceil(model.monitor.window / timedelta(days=1))
    return dg.TimeWindowPartitionMapping(start_offset=1 - days, allow_nonexistent_upstream_partitions=True)


def judged_release(answers: "pl.DataFrame") -> str | None:
    """The release that was champion at the end of the window: what the window is judged as."""
    import polars as pl

    champions = answers.filter(pl.col("variant") == "champion").sort("at", "seq")
    return None if champions.is_empty() else str(champions["release"][-1])


def manifest(bentos: "BentoStore", release: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((bentos.path(release) / "manifest.json").read_bytes())
    return loaded


def report_path(model: ModelPipeline, day: datetime, name: str) -> Path:
    """Where people find the page: `reports/<team>/<model>/<day>/<name>.html` under MLOPS_HOME."""
    return home() / "reports" / model.team / model.name / f"{day:%Y-%m-%d}" / f"{name}.html"


def link_to(page: Path) -> dict[str, Any]:
    """Metadata that leads to a page: its file, and its address while the platform is up."""
    if not page.exists():
        return {}
    address = f"{os.environ.get(REPORTS_URL, DEFAULT_REPORTS_URL)}/{page.relative_to(home() / 'reports')}"
    return {"report": dg.MetadataValue.url(address), "report_file": dg.MetadataValue.path(str(page))}
