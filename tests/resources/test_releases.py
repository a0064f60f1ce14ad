"""Release records: serialised changes, complete history, whatever is killed when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resources.releases import (
    CorruptReleaseError,
    InvalidReleaseError,
    ReleaseRecord,
    ReleaseStore,
    StaleReleaseError,
    UnknownReleaseError,
    Variant,
)

MODEL = "flights/late_arrival"
STEPS = [10, 50, 100]
WHO = {"by": "ada", "why": "a test"}


def tag(version: object) -> str:
    return f"flights_late_arrival:{version}"


@pytest.fixture
def releases(tmp_path: Path) -> ReleaseStore:
    return ReleaseStore(tmp_path / "releases")


def released(releases: ReleaseStore, *versions: object) -> ReleaseStore:
    """Each version in turn straight to all traffic."""
    for version in versions:
        releases.start_canary(MODEL, tag(version), str(version), [100], **WHO)
    return releases


def traffic(releases: ReleaseStore) -> dict[str, int]:
    record = releases.read(MODEL)
    assert record is not None
    return {variant.version: variant.weight for variant in record.variants}


def test_first_release_takes_all_traffic(releases: ReleaseStore) -> None:
    """There is nothing to compare the first release with."""
    releases.start_canary(MODEL, tag(1), "1", STEPS, **WHO)
    assert traffic(releases) == {"1": 100}


def test_canary_goes_through_its_steps_to_champion(releases: ReleaseStore) -> None:
    """A canary takes the stated percents; at 100 it is champion and the old one is what a rollback returns to."""
    released(releases, 1)
    seen = [releases.start_canary(MODEL, tag(2), "2", STEPS, **WHO), *(releases.advance(MODEL, **WHO) for _ in "ab")]
    assert [{v.version: v.weight for v in record.variants} for record in seen] == [
        {"1": 90, "2": 10},
        {"1": 50, "2": 50},
        {"2": 100},
    ]
    assert seen[-1].previous == Variant(tag(1), "1", 100)


def test_starting_the_same_release_again_changes_nothing(releases: ReleaseStore) -> None:
    """A repeated materialization is harmless, in the canary and after it."""
    released(releases, 1)
    record = releases.start_canary(MODEL, tag(2), "2", STEPS, **WHO)
    assert releases.start_canary(MODEL, tag(2), "2", STEPS, **WHO) == record
    assert releases.start_canary(MODEL, tag(1), "1", STEPS, **WHO) == record


def test_rollback_ends_a_canary(releases: ReleaseStore) -> None:
    """The challenger loses its traffic; the champion never changed."""
    releases.start_canary(MODEL, tag(1), "1", STEPS, **WHO)
    releases.start_canary(MODEL, tag(2), "2", STEPS, **WHO)
    assert releases.rollback(MODEL, **WHO).variants == (Variant(tag(1), "1", 100),)


def test_rollback_swaps_and_promote_goes_anywhere_known(releases: ReleaseStore) -> None:
    """One rollback returns to the release before, a second undoes it; promote reaches any release of the history."""
    released(releases, 1, 2, 3)
    assert releases.rollback(MODEL, **WHO).champion.version == "2"
    assert releases.rollback(MODEL, **WHO).champion.version == "3"
    assert releases.promote(MODEL, "1", **WHO).champion.version == "1"
    assert releases.rollback(MODEL, **WHO).champion.version == "3"


def test_promote_ends_a_canary_in_its_favour(releases: ReleaseStore) -> None:
    """Without a version it is the running canary that is promoted."""
    released(releases, 1)
    releases.start_canary(MODEL, tag(2), "2", STEPS, **WHO)
    releases.promote(MODEL, **WHO)
    assert traffic(releases) == {"2": 100}


def test_history_says_who_when_why_from_and_to(releases: ReleaseStore) -> None:
    """A line a change, readable without this library."""
    released(releases, 1)
    releases.start_canary(MODEL, tag(2), "2", STEPS, by="grace", why="better in spring")
    line = json.loads(releases.path(MODEL).with_suffix(".history.jsonl").read_text().splitlines()[-1])
    assert (line["by"], line["why"], line["action"]) == ("grace", "better in spring", "start canary")
    assert [variant["weight"] for variant in line["from"]] == [100]
    assert [variant["weight"] for variant in line["to"]] == [90, 10]
    assert line["at"].endswith("+00:00")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda r: r.rollback(MODEL, **WHO), "no previous release"),
        (lambda r: r.advance(MODEL, **WHO), "no canary running"),
        (lambda r: r.promote(MODEL, "9", **WHO), "no released version '9' (known: 1)"),
        (lambda r: r.promote("flights/other", "1", **WHO), "no release yet"),
    ],
)
def test_impossible_verbs_say_what_exists(
    releases: ReleaseStore, act: Callable[[ReleaseStore], object], says: str
) -> None:
    """What was asked, what exists; and nothing is changed."""
    record = released(releases, 1).read(MODEL)
    with pytest.raises(UnknownReleaseError) as error:
        act(releases)
    assert says in str(error.value)
    assert releases.read(MODEL) == record


@pytest.mark.parametrize("steps", [[], [50, 10, 100], [10, 50], [0, 100], [10, 10, 100]])
def test_canary_steps_must_ascend_to_100(releases: ReleaseStore, steps: list[int]) -> None:
    """Steps that never give all traffic, or give some of it back, are refused."""
    with pytest.raises(InvalidReleaseError, match="ascending to 100"):
        releases.start_canary(MODEL, tag(1), "1", steps, **WHO)


@pytest.mark.parametrize(
    "variants",
    [
        [],
        [Variant(tag(1), "1", 90)],
        [Variant(tag(1), "1", 100, "challenger")],
        [Variant(tag(1), "1", 50), Variant(tag(2), "2", 50)],
        [Variant(tag(1), "1", 150), Variant(tag(2), "2", -50, "challenger")],
    ],
)
def test_traffic_must_add_up(releases: ReleaseStore, variants: list[Variant]) -> None:
    """One champion, at most one challenger, 100 percent."""
    with pytest.raises(InvalidReleaseError, match="sum to 100"):
        releases.change(MODEL, 0, variants, by="ada", why="a test")
    assert releases.read(MODEL) is None


@pytest.mark.parametrize("model", ["late_arrival", "../x/y", "flights/../../etc", "Flights/Late"])
def test_model_id_is_no_path(releases: ReleaseStore, model: str) -> None:
    """An id cannot lead out of the store."""
    with pytest.raises(InvalidReleaseError, match="no model id"):
        releases.read(model)


def test_corrupt_record_is_named(releases: ReleaseStore) -> None:
    """A record that somebody broke by hand is an error that names the file."""
    path = released(releases, 1).path(MODEL)
    path.write_text('{"model": "flights/late_arrival"}')
    with pytest.raises(CorruptReleaseError, match=r"late_arrival\.json"):
        releases.read(MODEL)


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told_who(releases: ReleaseStore) -> None:
    """Both read the same record; the second to commit changes nothing and learns who was first."""
    record = released(releases, 1).read(MODEL)
    assert record is not None
    releases.change(MODEL, record.revision, [Variant(tag(2), "2", 100)], by="ada", why="first", action="promote")
    with pytest.raises(StaleReleaseError, match=r"ada did 'promote'.*\(first\).*version 2"):
        releases.change(MODEL, record.revision, [Variant(tag(3), "3", 100)], by="bob", why="second")
    assert traffic(releases) == {"2": 100}


COMMIT_MANY = """
import sys
from collections.abc import Callable
from pathlib import Path
from resources.releases import ReleaseStore, StaleReleaseError
releases, name = ReleaseStore(Path(sys.argv[1])), sys.argv[2]
won = 0
while won < 25:
    try:
        releases.start_canary("flights/late_arrival", f"b:{name}{won}", f"{name}{won}", [100], by=name, why=str(won))
        won += 1
    except StaleReleaseError:
        pass
print(won)
"""


def test_processes_at_once_are_serialised(releases: ReleaseStore) -> None:
    """Real processes in competition: every commit is in the history once, in one order, each on top of the last."""
    assert releases.root is not None
    workers = [
        subprocess.Popen([sys.executable, "-c", COMMIT_MANY, str(releases.root), name], stdout=subprocess.PIPE)
        for name in "abc"
    ]
    assert [worker.communicate(timeout=120)[0].strip() for worker in workers] == [b"25"] * 3
    history = releases.history(MODEL)
    assert [change.revision for change in history] == list(range(1, 76))
    assert all(after.before == before.after for before, after in pairwise(history))
    assert {(c.by, c.why) for c in history} == {(name, str(n)) for name in "abc" for n in range(25)}


KILLED = """
import os, sys
from collections.abc import Callable
from pathlib import Path
import resources.releases as r
step = sys.argv[2]
def die(*_): os._exit(9)
if step == "before the rename": r.os.replace = die
if step == "before the history": r.ReleaseStore._append_history = die
if step == "within the history line":
    def half(self, model, change):
        with self._history_path(model).open("ab") as file:
            file.write(b'{"revision": 2, "at"'); file.flush()
        os._exit(9)
    r.ReleaseStore._append_history = half
r.ReleaseStore(Path(sys.argv[1])).start_canary("flights/late_arrival", "b:2", "2", [100], by="bob", why="killed")
"""


@pytest.mark.parametrize(
    ("step", "committed"),
    [("before the rename", False), ("before the history", True), ("within the history line", True)],
)
def test_a_kill_at_any_step_leaves_record_and_history_agreed(
    releases: ReleaseStore, step: str, committed: bool
) -> None:
    """A change is either not there, or there with its history; and the next change continues from it."""
    released(releases, 1)
    assert subprocess.run([sys.executable, "-c", KILLED, str(releases.root), step], check=False).returncode == 9
    versions = ["1", "2"] if committed else ["1"]
    assert [change.after[0].version for change in releases.history(MODEL)] == versions
    released(releases, 3)
    history = releases.history(MODEL)
    assert [change.after[0].version for change in history] == [*versions, "3"]
    assert [change.revision for change in history] == list(range(1, len(history) + 1))


def test_readers_never_see_half_a_record(releases: ReleaseStore) -> None:
    """While records are replaced, every read gives a whole one."""
    released(releases, 0)
    done, seen = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            record = releases.read(MODEL)
            assert record is not None
            seen.append((record.revision, len(releases.history(MODEL))))

    reader = threading.Thread(target=read)
    reader.start()
    released(releases, *range(1, 40))
    done.set()
    reader.join()
    assert seen
    assert all(lines >= revision for revision, lines in seen)
    assert [pair[0] for pair in seen] == sorted(pair[0] for pair in seen)


class ReleaseLife(RuleBasedStateMachine):
    """Any sequence of verbs: the record stays sound and the history tells all of it."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.releases = ReleaseStore(Path(self.folder.name))
        self.changes = 0
        self._act(lambda: self.releases.start_canary(MODEL, tag(0), "0", STEPS, **WHO))

    def _act(self, verb: Callable[[], ReleaseRecord]) -> None:
        before = self.releases.read(MODEL)
        try:
            after = verb()
        except UnknownReleaseError:
            assert self.releases.read(MODEL) == before
        else:
            self.changes += after != before

    @rule(version=st.integers(0, 5), steps=st.sampled_from([[100], STEPS, [1, 100]]))
    def canary(self, version: int, steps: list[int]) -> None:
        self._act(lambda: self.releases.start_canary(MODEL, tag(version), str(version), steps, **WHO))

    @rule()
    def advance(self) -> None:
        self._act(lambda: self.releases.advance(MODEL, **WHO))

    @rule()
    def rollback(self) -> None:
        self._act(lambda: self.releases.rollback(MODEL, **WHO))

    @rule(version=st.none() | st.integers(0, 6).map(str))
    def promote(self, version: str | None) -> None:
        self._act(lambda: self.releases.promote(MODEL, version, **WHO))

    @precondition(lambda self: self.changes > 1)
    @rule()
    def lose_the_last_history_line(self) -> None:
        """As a kill between record and history does."""
        path = self.releases.path(MODEL).with_suffix(".history.jsonl")
        lines = path.read_bytes().splitlines(keepends=True)
        record = self.releases.read(MODEL)
        assert record is not None
        if json.loads(lines[-1])["revision"] == record.revision:
            os.truncate(path, sum(map(len, lines[:-1])))

    @invariant()
    def history_leads_to_the_record(self) -> None:
        record, history = self.releases.read(MODEL), self.releases.history(MODEL)
        assert record is not None
        assert [change.revision for change in history] == list(range(1, self.changes + 1))
        assert history[-1].after == record.variants
        assert all(after.before == before.after for before, after in pairwise(history))
        assert record.previous is None or record.previous.release != record.champion.release

    def teardown(self) -> None:
        self.folder.cleanup()


TestReleaseLife = ReleaseLife.TestCase
TestReleaseLife.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)
