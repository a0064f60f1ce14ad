"""A backfill of a month of tables in one run, with our event log and with Dagster's default one.

Same job, same days, same tables, a fresh instance each time; only the storage of events differs. The time is
that of the whole run, so the work of the assets is in it on both sides.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import dagster as dg
import yaml

from benchmarks.harness import Figure, Measurement, fresh_home, in_turn, require_equal, seconds
from resources.environment import PROJECT

MONTH = (date(2013, 1, 1), date(2013, 1, 31))
SETTING = "event_log_storage"
# Not promised by anybody: above it, something that made the difference was lost.
REGRESSION_BOUND = 0.6


def measure(rounds: int = 5, days: tuple[date, date] = MONTH) -> Measurement:
    """`days` are the first and the last day, both included."""
    ours = configuration()
    default = {name: value for name, value in ours.items() if name != SETTING}
    with fresh_home():
        require_equal("what the run recorded", recorded(ours, days), recorded(default, days))
        taken = in_turn(timed(ours, days), timed(default, days), rounds)
    return Measurement([Figure("event_log", *taken, "Dagster's default SQLite event log", target=REGRESSION_BOUND)])


def configuration() -> dict[str, Any]:
    """Ours, as it is installed on one machine."""
    settings: dict[str, Any] = yaml.safe_load((PROJECT / "deployment" / "local" / "dagster.yaml").read_text())
    return settings


@contextmanager
def instance(settings: Mapping[str, Any]) -> Iterator[dg.DagsterInstance]:
    """A fresh instance of Dagster with these settings."""
    with TemporaryDirectory(prefix="dagster-benchmark-") as home, patch.dict(os.environ, {"DAGSTER_HOME": home}):
        Path(home, "dagster.yaml").write_text(yaml.safe_dump(dict(settings)))
        with dg.DagsterInstance.from_config(home) as started:
            yield started


def backfill(into: dg.DagsterInstance, days: tuple[date, date]) -> str:
    """Fill the tables of the flights team in one run; returns its id."""
    from mlops_assets.definitions import defs
    from mlops_assets.demo import QUIET, TABLES_JOB

    first, last = map(str, days)
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return defs.resolve_job_def(TABLES_JOB).execute_in_process(QUIET, into, tags=tags).run_id


def timed(settings: Mapping[str, Any], days: tuple[date, date]) -> Callable[[], float]:
    def once() -> float:
        with instance(settings) as started:
            return seconds(lambda: backfill(started, days))

    return once


def recorded(settings: Mapping[str, Any], days: tuple[date, date]) -> tuple[Counter[str], dict[str, list[str]]]:
    """What a run leaves behind: events by type, and the published partitions of each asset."""
    with instance(settings) as started:
        events = started.all_logs(backfill(started, days))
        kinds = Counter(event.dagster_event.event_type_value for event in events if event.dagster_event)
        keys = sorted(started.all_asset_keys(), key=str)
        return kinds, {key.to_user_string(): sorted(started.get_materialized_partitions(key)) for key in keys}
