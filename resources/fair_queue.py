"""The order of waiting runs: what serves and trains before what catches up, and teams in turn.

Dagster's queue takes the highest `dagster/priority` first, and of equals the oldest: a team that asks for a hundred
runs would be served before one that asks for its first a minute later. So each run, when it is queued, gets a turn: one
after its team's last, and not before the turn that is running now. A team's second run waits for every other team's
first. Ranks come before turns; a run that brings a priority of its own keeps it. `resources.run_queue` gives them.
"""

from __future__ import annotations

from typing import Literal, Self, get_args

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_START_TAG, BACKFILL_ID_TAG, PRIORITY_TAG

Rank = Literal["serving", "training", "usual", "backfill"]
RANKS: tuple[Rank, ...] = get_args(Rank)
USUAL = RANKS.index("usual")
A_RANK = 1_000_000  # turns between two ranks; a queue is never so long
TEAM_TAG, RANK_TAG, TURN_TAG = "team", "mlops/rank", "mlops/turn"
NOBODY = "nobody"
RELEASES = {"champion", "bento", "endpoint"}  # links of the chain that change who answers


class UnknownRankError(ValueError):
    """A run was tagged with a rank that is none."""

    @classmethod
    def of(cls, rank: str) -> Self:
        return cls(f"The tag {RANK_TAG} is {rank!r} (known: {', '.join(RANKS)}). Give one of these, or none.")


def place(instance: DagsterInstance, run: DagsterRun) -> dict[str, str]:
    """The tags that give a run its place in the queue: its team, its rank, its turn, and the priority they make."""
    team, rank = team_of(run), rank_of(run)
    told = {TEAM_TAG: team, RANK_TAG: rank}
    if PRIORITY_TAG in run.tags and TURN_TAG not in run.tags:  # somebody's own; a retry brings that of its parent
        return told
    turn = _turn(instance, team, rank)
    return {**told, TURN_TAG: str(turn), PRIORITY_TAG: str(priority(rank, turn))}


def _turn(instance: DagsterInstance, team: str, rank: Rank) -> int:
    """Two reads of few runs, however long the queue is: the team's last in it, and what runs now."""
    of_rank = {RANK_TAG: rank}
    waiting = RunsFilter(statuses=[DagsterRunStatus.QUEUED], tags={**of_rank, TEAM_TAG: team})
    running = RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES, tags=of_rank)
    last = [turn_of(run) for run in instance.get_runs(waiting, limit=1)]
    now = [turn_of(run) for run in instance.get_runs(running)]
    return max([*(turn + 1 for turn in last), *now], default=0)


def priority(rank: Rank, turn: int) -> int:
    """As Dagster reads it: more is earlier. The first of the usual rank has 0, as a run without a priority."""
    return (USUAL - RANKS.index(rank)) * A_RANK - turn


def turn_of(run: DagsterRun) -> int:
    """The turn a run was given; 0 for one that brought its own priority."""
    return int(run.tags.get(TURN_TAG, 0))


def rank_of(run: DagsterRun) -> Rank:
    """What a run is for, by its tags and assets. UnknownRankError for a tag that names no rank."""
    if RANK_TAG in run.tags:
        rank = next((rank for rank in RANKS if rank == run.tags[RANK_TAG]), None)
        if rank is None:
            raise UnknownRankError.of(run.tags[RANK_TAG])
        return rank
    if BACKFILL_ID_TAG in run.tags or ASSET_PARTITION_RANGE_START_TAG in run.tags:
        return "backfill"
    links = {key.path[-1] for key in run.asset_selection or ()}
    if run.job_name.endswith("__train") or "candidate" in links:
        return "training"
    online = [key for key in run.asset_selection or () if "online" in key.path]
    return "serving" if links & RELEASES or online else "usual"


def team_of(run: DagsterRun) -> str:
    """Whose run it is: the tag of its job, else the first part of its assets' keys."""
    if tagged := run.tags.get(TEAM_TAG):
        return tagged
    checks = [check.asset_key for check in run.asset_check_selection or ()]
    teams = sorted({key.path[0] for key in (*(run.asset_selection or ()), *checks)})
    return teams[0] if teams else run.job_name.partition("__")[0] or NOBODY
