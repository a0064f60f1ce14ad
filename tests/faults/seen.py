"""What others see of a home: readers, callers and people. What is hidden or being worked on is not of it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Platform

    from resources.champions import ChampionMove

UNFINISHED = re.compile(r"(^|/)\.(?!locks)[^/]*\.[^/]*$|\.tmp$|\.partial$|/build-|/candidate-|/tmp[^/]{8}$")
NOT_OURS = ("dagster", "logs")


def seen(platform: Platform) -> dict[str, Any]:
    """Tables and pages by their contents, online rows, versions, alias, traffic, their histories, and Bentos."""
    home = platform.home
    files = [*(home / "lake").rglob("*.parquet"), *(home / "reports").rglob("*.html")]
    contents = {str(path.relative_to(home)): digest(path) for path in files if not path.name.startswith(".")}
    return {**contents, **platform.published, "online": online(platform)}


def online(platform: Platform) -> str:
    """The packed rows of every online view."""
    with closing(sqlite3.connect(platform.home / "feast" / "online_store.db")) as database:
        return sha256(repr(database.execute("SELECT * FROM packed_rows").fetchall()).encode()).hexdigest()


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def unfinished(home: Path) -> set[str]:
    """What somebody began to write and did not publish, or works on."""
    names = {str(path.relative_to(home)) for path in home.rglob("*")}
    return {name for name in names if UNFINISHED.search(name) and not name.startswith(NOT_OURS)}


def noticed(platform: Platform) -> None:
    """What the daemon does of a run whose worker died (test_dead_worker.py): it failed, and its slots are free."""
    import dagster as dg

    for run in platform.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        platform.instance.report_run_failed(run)
        platform.instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def agreed(platform: Platform) -> None:
    """The champion is one that answers, and both histories are without gap and double."""
    now = platform.published
    answering = {variant.version for variant in now["release"].answering}
    assert now["alias"] in answering or now["alias"] in promised(platform), now
    assert [change.revision for change in now["changes"]] == list(range(1, len(now["changes"]) + 1))
    assert now["changes"][-1] == now["release"].change
    assert now["moves"][-1].after == now["alias"]
    assert all(map(follows, now["moves"], now["moves"][1:]))


def follows(before: ChampionMove, move: ChampionMove) -> bool:
    """From where the alias was; or the very move before, whose writer was killed before the alias was set."""
    return move.before == before.after or (move.before, move.after) == (before.before, before.after)


def promised(platform: Platform) -> set[str]:
    """Versions that have not reached traffic yet: champion and traffic are two assets of the chain."""
    return set(platform.published["versions"]) - {
        variant.version for change in platform.published["changes"] for variant in change.after
    }


def online_alike(platform: Platform) -> None:
    """What the endpoint reads and what any Feast client reads are the same."""
    feast = platform.resources["feast"]
    assert not list(feast.online_differences("flights__weather_hourly"))


def told_versions(platform: Platform) -> set[str]:
    """The versions that Dagster's materializations of the candidate name."""
    import dagster as dg

    from mlops_assets.links.spec import link_key

    found = platform.instance.fetch_materializations(link_key(platform.model, "candidate"), limit=100)
    events = [record.asset_materialization for record in found.records]
    return {str(event.metadata["version"].value) for event in events if isinstance(event, dg.AssetMaterialization)}
