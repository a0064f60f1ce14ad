"""The order of waiting runs, by Dagster's own queue daemon over hundreds of runs that nobody really runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.tags import BACKFILL_ID_TAG, PRIORITY_TAG
from dagster._core.test_utils import create_run_for_test, create_test_daemon_workspace_context
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from mlops_assets.waiting import waiting
from resources.fair_queue import RANK_TAG, TEAM_TAG, UnknownRankError, rank_of, team_of

AT_ONCE, OF_A_TEAM = 4, 3
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("nowhere"), "nothing"), "job")


class Queue:
    """An instance whose runs are taken from the queue by the daemon, and end when the test says so."""

    def __init__(self, instance: dg.DagsterInstance, workspace: Any) -> None:
        self.instance = instance
        self._workspace = workspace
        self._daemon = QueuedRunCoordinatorDaemon(interval_seconds=1, page_size=10)

    def ask(self, team: str, count: int = 1, **tags: str) -> list[str]:
        made = [
            create_run_for_test(self.instance, tags={TEAM_TAG: team, **tags}, remote_job_origin=ORIGIN)
            for _ in range(count)
        ]
        for run in made:
            self.instance.run_coordinator.submit_run(SubmitRunContext(run, self._workspace.create_request_context()))
        return [run.run_id for run in made]

    def take(self) -> list[str]:
        """One pass of the daemon; the teams whose runs it started, in the order it did."""
        before = set(self.started)
        list(self._daemon.run_iteration(self._workspace))
        return [self.team(run_id) for run_id in self.started if run_id not in before]

    def end(self, run_id: str) -> None:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        self.instance.report_run_canceled(run)

    def lived(self) -> list[str]:
        """The teams in the order that their runs start, each run ending before the next pass."""
        order = []
        while taken := self.take():
            order += taken
            for run_id in self.running:
                self.end(run_id)
        return order

    @property
    def running(self) -> list[str]:
        return [run.run_id for run in self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING]))]

    @property
    def started(self) -> list[str]:
        return [run.run_id for run in self.instance.run_launcher.queue()]  # type: ignore[attr-defined]

    def team(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return team_of(run)


@pytest.fixture(scope="module")
def one_queue() -> Iterator[Queue]:
    settings = {
        "run_coordinator": {"module": "resources.run_queue", "class": "RunQueue"},
        "run_launcher": {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"},
        "concurrency": {
            "runs": {
                "max_concurrent_runs": AT_ONCE,
                "tag_concurrency_limits": [
                    {"key": TEAM_TAG, "value": {"applyLimitPerUniqueValue": True}, "limit": OF_A_TEAM}
                ],
            }
        },
    }
    with (
        dg.instance_for_test(overrides=settings) as instance,
        create_test_daemon_workspace_context(EmptyWorkspaceTarget(), instance) as workspace,
    ):
        yield Queue(instance, workspace)


@pytest.fixture
def queue(one_queue: Queue) -> Queue:
    """Without the runs of the test before."""
    one_queue.instance.run_storage.wipe()
    return one_queue


def test_a_team_with_one_run_does_not_wait_for_one_with_sixty(queue: Queue) -> None:
    """Three teams: who asks last is served in the next pass, and then the teams take turns until the queue is empty."""
    queue.ask("vision", 60)
    assert queue.take() == ["vision"] * OF_A_TEAM
    queue.ask("fraud", 60)
    (lone,) = queue.ask("flights")
    assert queue.take() == ["fraud"]  # the last slot; it asked before flights did
    queue.end(queue.running[0])
    assert queue.take() == ["flights"]
    assert waiting(queue.instance)[0].run_id != lone
    for run_id in queue.running:
        queue.end(run_id)
    order = queue.lived()
    assert Counter(order) == {"vision": 57, "fraud": 59}
    halves = Counter(order[: len(order) // 2])
    assert abs(halves["vision"] - halves["fraud"]) <= OF_A_TEAM + 1


def test_a_late_team_is_not_owed_what_it_did_not_ask_for(queue: Queue) -> None:
    """A team that comes when others have had many turns goes on from there: it may not take as many in a row."""
    queue.ask("vision", 24)
    for _ in range(4):
        queue.take()
        for run_id in queue.running:
            queue.end(run_id)
    queue.take()
    queue.ask("fraud", 8)
    order = queue.lived()
    assert Counter(order[:8])["vision"] >= 2


def test_serving_and_training_come_before_backfills(queue: Queue) -> None:
    """However long these waited; and within one rank, teams in turn."""
    queue.ask("flights", 10, **{BACKFILL_ID_TAG: "catches-up"})
    queue.ask("flights", 2)
    queue.ask("flights", 2, **{RANK_TAG: "training"})
    queue.ask("flights", 1, **{RANK_TAG: "serving"})
    ranks = [one.rank for one in waiting(queue.instance)]
    assert ranks == ["serving", "training", "training", "usual", "usual", *["backfill"] * 10]


def test_a_priority_that_somebody_gave_is_kept(queue: Queue) -> None:
    (urgent,) = queue.ask("vision", 1, **{PRIORITY_TAG: "5"})
    queue.ask("fraud", 2)
    run = queue.instance.get_run_by_id(urgent)
    assert run is not None
    assert run.tags[PRIORITY_TAG] == "5"
    assert waiting(queue.instance)[0].run_id == urgent


def test_each_waiting_run_is_told_its_place_and_the_reason(queue: Queue) -> None:
    """What is told is what the daemon then does: what it is said to take is taken, the others are not."""
    queue.ask("vision", 5)
    queue.take()
    queue.ask("fraud", 3)
    told = waiting(queue.instance)
    assert [(one.place, one.team, one.because) for one in told] == [
        (1, "fraud", "the daemon takes it within seconds"),
        (2, "vision", "team vision has its 3 runs at once"),
        (3, "fraud", "4 of 4 runs are in progress or about to start; it is the next"),
        (4, "vision", "team vision has its 3 runs at once"),
        (5, "fraud", "4 of 4 runs are in progress or about to start, 1 run is before it"),
    ]
    assert queue.take() == ["fraud"]


def test_the_reason_may_be_a_pool(queue: Queue) -> None:
    """A run whose first steps all want a slot of a full pool."""

    @dg.asset(pool="training")
    def model() -> None: ...

    queue.instance.event_log_storage.set_concurrency_slots("training", 0)
    job = dg.Definitions([model]).resolve_implicit_global_asset_job_def()
    run = queue.instance.create_run_for_job(
        job, asset_selection=frozenset({model.key}), remote_job_origin=ORIGIN, tags={TEAM_TAG: "flights"}
    )
    context = queue._workspace.create_request_context()
    queue.instance.run_coordinator.submit_run(SubmitRunContext(run, context))
    (told,) = waiting(queue.instance)
    assert told.because == "every slot of pool training is taken"
    assert queue.take() == []


def test_whose_a_run_is_and_what_for_is_read_off_its_assets(queue: Queue) -> None:
    def run(*keys: list[str], job: str = "__ASSET_JOB", **tags: str) -> dg.DagsterRun:
        selection = frozenset(map(dg.AssetKey, keys)) or None
        return create_run_for_test(queue.instance, job_name=job, asset_selection=selection, tags=tags)

    endpoint = run(["flights", "late", "endpoint"])
    assert (team_of(endpoint), rank_of(endpoint)) == ("flights", "serving")
    assert rank_of(run(["flights", "online", "weather"])) == "serving"
    assert rank_of(run(["flights", "late", "candidate"], ["flights", "late", "endpoint"])) == "training"
    assert rank_of(run(job="flights__late__train")) == "training"
    assert rank_of(run(["flights", "late", "drift_report"])) == "usual"
    assert team_of(run(job="flights__tables")) == "flights"
    assert team_of(run()) == "nobody"
    with pytest.raises(UnknownRankError, match="known: serving, training, usual, backfill"):
        rank_of(run(**{RANK_TAG: "urgent"}))
