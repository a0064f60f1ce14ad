"""Who waits for what: each queued run's place in the line, and the reason that it has not started.

The order and the limits are those that Dagster's daemon goes by; this reads what it reads, and starts nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from resources.fair_queue import RANK_TAG, TEAM_TAG, rank_of, team_of

if TYPE_CHECKING:
    from dagster import DagsterInstance, DagsterRun
    from dagster._core.storage.dagster_run import RunRecord

COLUMNS = ("place", "run", "what", "team", "rank", "waits since", "because")
SHOWN_ASSETS = 2
AT_MOST = 10_000  # runs read; a longer queue is cut, and the line says so


@dataclass(frozen=True)
class Waiting:
    """One run in the queue. `place` counts from 1; `since` is when it was made."""

    place: int
    run_id: str
    what: str
    team: str
    rank: str
    since: datetime
    because: str

    @property
    def cells(self) -> tuple[str, ...]:
        since = f"{self.since:%Y-%m-%d %H:%M:%S}"
        return (ordinal(self.place), self.run_id[:8], self.what, self.team, self.rank, since, self.because)


@dataclass(frozen=True)
class Limits:
    """What holds runs back: runs at once in all (-1 without end), and of one team (None without)."""

    runs: int
    team: int | None


def waiting(instance: DagsterInstance) -> list[Waiting]:
    """Every queued run, the next one first."""
    from dagster import DagsterRunStatus, RunsFilter
    from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES

    queued = instance.get_run_records(RunsFilter(statuses=[DagsterRunStatus.QUEUED]), limit=AT_MOST, ascending=True)
    running = instance.get_run_records(RunsFilter(statuses=ACTIVE_RUN_STATUSES))
    return in_line(queued, [record.dagster_run for record in running], limits_of(instance), free_slots(instance))


def in_line(
    queued: Sequence[RunRecord], running: Sequence[DagsterRun], limits: Limits, slots: dict[str, int]
) -> list[Waiting]:
    """The line, as the daemon will take from it. `queued` comes oldest first, `slots` are free ones by pool."""
    from dagster._core.storage.tags import PRIORITY_TAG

    def urgency(record: RunRecord) -> int:
        given = record.dagster_run.tags.get(PRIORITY_TAG, "0")
        return -int(given) if given.lstrip("-").isdecimal() else 0

    line = sorted(queued, key=urgency)
    reasons = _reasons([record.dagster_run for record in line], running, limits, slots)
    return [_told(place, record, why) for (place, record), why in zip(enumerate(line, 1), reasons, strict=True)]


def _reasons(
    line: Sequence[DagsterRun], running: Sequence[DagsterRun], limits: Limits, slots: dict[str, int]
) -> Iterator[str]:
    teams, ahead, busy = Counter(team_of(run) for run in running), 0, len(running)
    left = dict(slots)
    for run in line:
        team, pools = team_of(run), _pools_at_once(run)
        full = [pool for pool in pools if left.get(pool, 1) < 1]
        if limits.team is not None and teams[team] >= limits.team:
            yield f"team {team} has its {limits.team} runs at once"
        elif full:
            yield f"every slot of pool {full[0]} is taken"
        elif 0 <= limits.runs <= busy:
            so_many = f"{busy} of {limits.runs} runs are in progress or about to start"
            yield f"{so_many}, {_count(ahead)} before it" if ahead else f"{so_many}; it is the next"
            ahead += 1
        else:
            yield "the daemon takes it within seconds"
            busy += 1
            teams[team] += 1
            left |= {pool: left[pool] - 1 for pool in pools if pool in left}


def _pools_at_once(run: DagsterRun) -> list[str]:
    """The pools that all of a run's first steps wait for; none where some step can begin without."""
    wanted = run.run_op_concurrency
    return [] if wanted is None or wanted.has_unconstrained_root_nodes else sorted(wanted.root_key_counts)


def limits_of(instance: DagsterInstance) -> Limits:
    """As dagster.yaml has them."""
    queue = instance.get_concurrency_config().run_queue_config
    if queue is None:
        return Limits(-1, None)
    per_team = [
        limit["limit"]
        for limit in queue.tag_concurrency_limits or ()
        if limit["key"] == TEAM_TAG and isinstance(limit.get("value"), dict)
    ]
    return Limits(queue.max_concurrent_runs, min(per_team, default=None))


def free_slots(instance: DagsterInstance) -> dict[str, int]:
    """Free slots of each pool that has a limit."""
    storage = instance.event_log_storage
    found = {pool: storage.get_concurrency_info(pool) for pool in storage.get_concurrency_keys()}
    return {pool: info.slot_count - info.active_slot_count for pool, info in found.items()}


def _told(place: int, record: RunRecord, because: str) -> Waiting:
    run = record.dagster_run
    since = record.create_timestamp.replace(tzinfo=UTC)
    rank = run.tags.get(RANK_TAG) or rank_of(run)
    return Waiting(place, run.run_id, what_of(run), team_of(run), rank, since, because)


def what_of(run: DagsterRun) -> str:
    """The assets that a run is to materialize, or its job; with its partition."""
    from dagster._core.storage.tags import PARTITION_NAME_TAG

    keys = sorted(key.to_user_string() for key in run.asset_selection or ())
    more = f" and {len(keys) - SHOWN_ASSETS} more" if len(keys) > SHOWN_ASSETS else ""
    partition = run.tags.get(PARTITION_NAME_TAG)
    return (", ".join(keys[:SHOWN_ASSETS]) + more or run.job_name) + (f" [{partition}]" if partition else "")


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _count(runs: int) -> str:
    return "1 run is" if runs == 1 else f"{runs} runs are"
