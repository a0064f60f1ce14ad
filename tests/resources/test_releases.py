"""Release records: serialised changes, complete history, whatever is killed when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from resources.release_record import Refusal, refusals
from resources.releases import (
    CorruptReleaseError,
    InvalidReleaseError,
    Limits,
    ReleaseRecord,
    ReleaseStore,
    Role,
    SplitRunningError,
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


def in_canary(releases: ReleaseStore, limits: Limits | None = None) -> ReleaseRecord:
    """Version 1 before, 2 the champion, 3 in the first step of a canary, 4 the shadow."""
    released(releases, 1, 2).start_canary(MODEL, tag(3), "3", STEPS, **WHO, limits=limits)
    return releases.shadow(MODEL, tag(4), "4", **WHO)


def roles(record: ReleaseRecord | None) -> dict[Role, tuple[str, int]]:
    assert record is not None
    return {variant.role: (variant.version, variant.weight) for variant in record.variants}


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


# -- a split, a shadow, limits --------------------------------------------------------------------


def test_a_split_stays_as_it_is_until_somebody_changes_it(releases: ReleaseStore) -> None:
    """It has no steps to go through and no limits; another percent is another change, the same one none."""
    released(releases, 1)
    record = releases.split(MODEL, tag(2), "2", 20, **WHO)
    assert roles(record) == {"champion": ("1", 80), "challenger": ("2", 20)}
    assert (record.steps, record.limits, record.canary) == ((), None, None)
    with pytest.raises(UnknownReleaseError, match="no canary running"):
        releases.advance(MODEL, **WHO)
    assert releases.split(MODEL, tag(2), "2", 20, **WHO) == record
    assert roles(releases.split(MODEL, tag(2), "2", 30, **WHO))["challenger"] == ("2", 30)


def test_a_split_ends_in_favour_of_either(releases: ReleaseStore) -> None:
    """`promote` without a version crowns the challenger, `champion_only` and `rollback` leave the champion."""
    for end, winner in ((releases.promote, "2"), (releases.champion_only, "1"), (releases.rollback, "1")):
        released(releases, 1).split(MODEL, tag(2), "2", 50, **WHO)
        assert roles(end(MODEL, **WHO)) == {"champion": (winner, 100)}
        releases.release(MODEL, tag(1), "1", **WHO)


def test_no_canary_ends_a_split_that_a_person_began(releases: ReleaseStore) -> None:
    """A retraining in the middle of an experiment is told so; the experiment goes on."""
    record = released(releases, 1).split(MODEL, tag(2), "2", 50, **WHO)
    with pytest.raises(SplitRunningError, match=rf"an A/B split runs since {record.began[:10]}.*--champion-only"):
        releases.start_canary(MODEL, tag(3), "3", STEPS, **WHO)
    assert releases.read(MODEL) == record


@pytest.mark.parametrize(("version", "percent"), [("2", 0), ("2", 100), ("1", 50)])
def test_a_split_is_between_two_releases_that_both_answer(releases: ReleaseStore, version: str, percent: int) -> None:
    record = released(releases, 1).read(MODEL)
    with pytest.raises(InvalidReleaseError, match=r"1 to 99|is the champion"):
        releases.split(MODEL, tag(version), version, percent, **WHO)
    assert releases.read(MODEL) == record


def test_a_shadow_changes_nothing_for_those_who_answer(releases: ReleaseStore) -> None:
    """A canary keeps its step, its limits and the time since when it is judged; its next step keeps the shadow."""
    released(releases, 1)
    before = releases.start_canary(MODEL, tag(2), "2", STEPS, **WHO, limits=Limits(min_requests=7))
    during = releases.shadow(MODEL, tag(3), "3", **WHO)
    assert during.answering == before.variants and during.shadow == Variant(tag(3), "3", 0, "shadow")
    assert (during.steps, during.step, during.limits) == (before.steps, before.step, before.limits)
    assert during.began == before.began != during.at
    assert releases.shadow(MODEL, tag(3), "3", **WHO) == during
    after = releases.advance(MODEL, **WHO)
    assert after.shadow == during.shadow and after.began == after.at and after.limits == before.limits
    assert releases.unshadow(MODEL, **WHO).answering == after.answering
    assert releases.unshadow(MODEL, **WHO).shadow is None


def test_promotion_and_rollback_keep_the_shadow_unless_it_is_that_release(releases: ReleaseStore) -> None:
    """What answers is no shadow any more."""
    released(releases, 1, 2).shadow(MODEL, tag(3), "3", **WHO)
    assert roles(releases.rollback(MODEL, **WHO)) == {"champion": ("1", 100), "shadow": ("3", 0)}
    assert roles(releases.promote(MODEL, "2", **WHO)) == {"champion": ("2", 100), "shadow": ("3", 0)}
    assert roles(releases.start_canary(MODEL, tag(3), "3", STEPS, **WHO)) == {
        "champion": ("2", 90),
        "challenger": ("3", 10),
    }


def test_what_answers_is_no_shadow(releases: ReleaseStore) -> None:
    in_canary(releases)
    for version in ("2", "3"):
        with pytest.raises(InvalidReleaseError, match="answers already"):
            releases.shadow(MODEL, tag(version), version, **WHO)


def test_a_canary_carries_its_limits_to_its_end(releases: ReleaseStore) -> None:
    """The serving process judges by them without the declaration; what is no canary has none."""
    limits = Limits(max_error_share=0.2, max_latency_ratio=2.0, min_requests=9)
    assert in_canary(releases, limits).limits == limits
    assert releases.advance(MODEL, **WHO).limits == limits
    assert releases.advance(MODEL, **WHO).limits is None
    assert ReleaseStore(releases.root).start_canary(MODEL, tag(5), "5", STEPS, **WHO).limits == Limits()


# -- what serving processes refuse ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        ("4", {"champion": ("2", 90), "challenger": ("3", 10)}),
        ("3", {"champion": ("2", 100), "shadow": ("4", 0)}),
        ("2", {"champion": ("1", 90), "challenger": ("3", 10), "shadow": ("4", 0)}),
    ],
    ids=["shadow", "challenger", "champion"],
)
def test_what_is_refused_is_out_and_the_others_stay(
    releases: ReleaseStore, refused: str, left: dict[Role, tuple[str, int]]
) -> None:
    """A challenger's traffic goes back to the champion; the release before takes the place of a champion."""
    record = in_canary(releases)
    after = releases.refuse(MODEL, record.revision, tag(refused), by="pod-1", why="no model file")
    assert after is not None and roles(after) == left
    assert [variant.version for variant in after.change.refused] == [refused]
    assert (after.change.action, after.by, after.why) == ("refused", "pod-1", "no model file")
    assert (after.limits is None) == (after.canary is None)


def test_a_champion_without_a_release_before_it_stays(releases: ReleaseStore) -> None:
    """There is nothing else to answer with; so it is when the one before was refused as well."""
    record = released(releases, 1).read(MODEL)
    assert record is not None
    assert releases.refuse(MODEL, 1, tag(1), by="pod-1", why="broken") == record
    released(releases, 2)
    assert roles(releases.refuse(MODEL, 2, tag(2), by="pod-1", why="broken")) == {"champion": ("1", 100)}
    assert roles(releases.refuse(MODEL, 3, tag(1), by="pod-1", why="broken")) == {"champion": ("1", 100)}


def test_a_rollback_never_returns_to_what_was_refused(releases: ReleaseStore) -> None:
    """It goes to the champion before that, until somebody promotes the refused one again."""
    released(releases, 1, 2, 3)
    after = releases.refuse(MODEL, 3, tag(3), by="pod-1", why="broken")
    assert after is not None and after.champion.version == "2" and after.previous == Variant(tag(1), "1", 100)
    assert releases.rollback(MODEL, **WHO).champion.version == "1"
    released(releases, 3, 2)
    assert releases.rollback(MODEL, **WHO).champion.version == "3"


def test_the_release_before_is_not_the_canary_too(releases: ReleaseStore) -> None:
    """The champion is refused while the one before it is in a canary again: it has all traffic, once."""
    released(releases, 1, 2)
    record = releases.start_canary(MODEL, tag(1), "1", STEPS, **WHO)
    after = releases.refuse(MODEL, record.revision, tag(2), by="pod-1", why="broken")
    assert roles(after) == {"champion": ("1", 100)} and after is not None and after.steps == ()


def test_a_verdict_on_other_traffic_changes_nothing(releases: ReleaseStore) -> None:
    """A process that is behind judges by its own revision, an unknown release is nobody's, and both see what is."""
    record = in_canary(releases)
    assert releases.refuse(MODEL, record.revision - 1, tag(3), by="pod-1", why="late") == record
    assert releases.refuse(MODEL, record.revision, tag(9), by="pod-1", why="?") == record
    assert releases.refuse("flights/other", 1, tag(1), by="pod-1", why="?") is None


REFUSE = """
import sys, time
from pathlib import Path
from resources.releases import ReleaseStore
releases, begin = ReleaseStore(Path(sys.argv[1])), float(sys.argv[2])
time.sleep(max(begin - time.time(), 0))
after = releases.refuse(
    "flights/late_arrival", 4, "flights_late_arrival:3", by=sys.argv[3], why="too slow", action="circuit breaker"
)
print(after.revision, after.by)
"""


def test_several_workers_refuse_at_once_and_one_change_results(releases: ReleaseStore) -> None:
    """Real processes that all found the same; each sees the record that the first of them left."""
    assert in_canary(releases).revision == 4
    begin = str(time.time() + 1.5)
    command = [sys.executable, "-c", REFUSE, str(releases.root), begin]
    workers = [subprocess.Popen([*command, f"worker {n}"], stdout=subprocess.PIPE, text=True) for n in range(4)]
    said = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    after = releases.read(MODEL)
    assert after is not None and said == {f"5 {after.by}"}
    assert (after.change.action, roles(after)) == ("circuit breaker", {"champion": ("2", 100), "shadow": ("4", 0)})
    assert len(releases.history(MODEL)) == 5


# -- the record as a file ---------------------------------------------------------------------------


BEFORE_SPLITS = {
    "model": MODEL,
    "revision": 2,
    "variants": [
        {"release": tag(1), "version": "1", "weight": 90, "role": "champion"},
        {"release": tag(2), "version": "2", "weight": 10, "role": "challenger"},
    ],
    "previous": None,
    "steps": [10, 100],
    "step": 0,
    "change": {
        "revision": 2, "at": "2026-11-20T10:00:00.000+00:00", "by": "ada", "why": "new", "action": "start canary",
        "from": [{"release": tag(1), "version": "1", "weight": 100, "role": "champion"}],
        "to": [
            {"release": tag(1), "version": "1", "weight": 90, "role": "champion"},
            {"release": tag(2), "version": "2", "weight": 10, "role": "challenger"},
        ],
    },
}  # fmt: skip


def test_a_record_of_an_older_version_is_read_and_goes_on(releases: ReleaseStore) -> None:
    """It says no limits and not since when: a canary is held to the usual ones, from its last change on."""
    path = releases.path(MODEL)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(BEFORE_SPLITS))
    record = releases.read(MODEL)
    assert record is not None and record.canary is not None and record.shadow is None
    assert (record.limits, record.began) == (Limits(), record.at)
    assert traffic(releases) == {"1": 90, "2": 10}
    assert releases.advance(MODEL, **WHO).champion.version == "2"


def test_what_a_newer_version_added_is_passed_over(releases: ReleaseStore) -> None:
    """A serving process that is packed in an older Bento follows on."""
    in_canary(releases)
    path = releases.path(MODEL)
    newer = json.loads(path.read_text())
    for part in (newer, newer["change"], newer["limits"], newer["previous"], newer["variants"][0]):
        part["colour"] = "blue"
    before = releases.read(MODEL)
    path.write_text(json.dumps(newer))
    assert releases.read(MODEL) == before


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


VERBS = {
    "start_canary": lambda r, n: r.start_canary(MODEL, tag(f"9{n}"), f"9{n}", STEPS, by=f"p{n}", why="", revision=4),
    "advance": lambda r, n: r.advance(MODEL, by=f"p{n}", why="", revision=4),
    "promote": lambda r, n: r.promote(MODEL, by=f"p{n}", why="", revision=4),
    "release": lambda r, n: r.release(MODEL, tag(f"9{n}"), f"9{n}", by=f"p{n}", why="", revision=4),
    "rollback": lambda r, n: r.rollback(MODEL, by=f"p{n}", why="", revision=4),
    "split": lambda r, n: r.split(MODEL, tag(f"9{n}"), f"9{n}", 30, by=f"p{n}", why="", revision=4),
    "champion_only": lambda r, n: r.champion_only(MODEL, by=f"p{n}", why="", revision=4),
    "shadow": lambda r, n: r.shadow(MODEL, tag(f"9{n}"), f"9{n}", by=f"p{n}", why="", revision=4),
    "unshadow": lambda r, n: r.unshadow(MODEL, by=f"p{n}", why="", revision=4),
}


@pytest.mark.parametrize("verb", [*VERBS, "all"])
def test_of_many_writers_at_once_exactly_one_wins_and_the_others_name_it(releases: ReleaseStore, verb: str) -> None:
    """All decided by the same revision, with whichever verb; they begin together."""
    assert in_canary(releases).revision == 4
    acts = list(VERBS.values()) if verb == "all" else [VERBS[verb]] * 6
    together = threading.Barrier(len(acts))

    def act(number: int) -> ReleaseRecord | StaleReleaseError:
        together.wait()
        try:
            return acts[number](releases, number)
        except StaleReleaseError as lost:
            return lost

    with ThreadPoolExecutor(len(acts)) as pool:
        ends = list(pool.map(act, range(len(acts))))
    (won,) = [end for end in ends if isinstance(end, ReleaseRecord)]
    assert (won.revision, releases.read(MODEL), len(releases.history(MODEL))) == (5, won, 5)
    assert all(f"{won.by} did {won.change.action!r}" in str(end) for end in ends if end is not won)


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
from pathlib import Path
import resources.releases as r
step, verb = sys.argv[2], sys.argv[3]
def die(*_): os._exit(9)
if step == "before the rename": r.os.replace = die
if step == "before the history": r.ReleaseStore._append_history = die
if step == "within the history line":
    def half(self, model, change):
        with self._history_path(model).open("ab") as file:
            file.write(b'{"revision": 5, "at"'); file.flush()
        os._exit(9)
    r.ReleaseStore._append_history = half
releases, model, who = r.ReleaseStore(Path(sys.argv[1])), "flights/late_arrival", {"by": "bob", "why": "killed"}
if verb == "promote": releases.promote(model, **who)
if verb == "split": releases.split(model, "b:9", "9", 20, **who)
if verb == "shadow": releases.shadow(model, "b:9", "9", **who)
if verb == "refuse": releases.refuse(model, 4, "flights_late_arrival:3", **who)
"""


@pytest.mark.parametrize("verb", ["promote", "split", "shadow", "refuse"])
@pytest.mark.parametrize(
    ("step", "committed"),
    [("before the rename", False), ("before the history", True), ("within the history line", True)],
)
def test_a_kill_at_any_step_leaves_record_and_history_agreed(
    releases: ReleaseStore, step: str, committed: bool, verb: str
) -> None:
    """A change is either not there, or there with its history; and the next change continues from it."""
    before = in_canary(releases)
    assert subprocess.run([sys.executable, "-c", KILLED, str(releases.root), step, verb], check=False).returncode == 9
    record, history = releases.read(MODEL), releases.history(MODEL)
    assert record is not None and history[-1] == record.change
    assert (record.why, record.revision) == (("killed", 5) if committed else (before.why, 4))
    releases.release(MODEL, tag(6), "6", **WHO)
    history = releases.history(MODEL)
    assert [change.revision for change in history] == list(range(1, record.revision + 2))
    assert all(one.after == other.before for one, other in pairwise(history))


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


versions = st.integers(0, 5).map(str)


class ReleaseLife(RuleBasedStateMachine):
    """Any sequence of verbs: the record stays sound and the history tells all of it."""

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.releases = ReleaseStore(Path(self.folder.name))
        self.changes = 0
        self._act(lambda: self.releases.start_canary(MODEL, tag(0), "0", STEPS, **WHO))

    def _act(self, verb: Callable[[], ReleaseRecord | None]) -> None:
        """A verb either changes the record by one revision, or leaves it and says so."""
        before = self.releases.read(MODEL)
        try:
            after = verb()
        except (UnknownReleaseError, InvalidReleaseError):
            assert self.releases.read(MODEL) == before
        else:
            assert after == self.releases.read(MODEL)
            self.changes += after != before

    @property
    def record(self) -> ReleaseRecord:
        record = self.releases.read(MODEL)
        assert record is not None
        return record

    @rule(version=versions, steps=st.sampled_from([[100], STEPS, [1, 100]]))
    def canary(self, version: str, steps: list[int]) -> None:
        self._act(lambda: self.releases.start_canary(MODEL, tag(version), version, steps, **WHO))

    @rule()
    def advance(self) -> None:
        self._act(lambda: self.releases.advance(MODEL, **WHO))

    @rule()
    def rollback(self) -> None:
        out = refusals(self.releases.history(MODEL))
        self._act(lambda: self.releases.rollback(MODEL, **WHO))
        assert self.record.change.action != "rollback" or self.record.champion.release not in out

    @rule(version=st.none() | st.integers(0, 6).map(str))
    def promote(self, version: str | None) -> None:
        self._act(lambda: self.releases.promote(MODEL, version, **WHO))

    @rule(version=versions)
    def release(self, version: str) -> None:
        self._act(lambda: self.releases.release(MODEL, tag(version), version, **WHO))

    @rule(version=versions, percent=st.integers(-1, 101))
    def split(self, version: str, percent: int) -> None:
        self._act(lambda: self.releases.split(MODEL, tag(version), version, percent, **WHO))

    @rule()
    def champion_only(self) -> None:
        self._act(lambda: self.releases.champion_only(MODEL, **WHO))

    @rule(version=versions)
    def shadow(self, version: str) -> None:
        answering = self.record.answering
        self._act(lambda: self.releases.shadow(MODEL, tag(version), version, **WHO))
        assert self.record.answering == answering

    @rule()
    def unshadow(self) -> None:
        answering = self.record.answering
        self._act(lambda: self.releases.unshadow(MODEL, **WHO))
        assert self.record.answering == answering

    @rule(version=versions, behind=st.integers(0, 1), action=st.sampled_from(["refused", "circuit breaker"]))
    def refuse(self, version: str, behind: int, action: Refusal) -> None:
        """Asked twice, as by two workers, it is one change; and what is refused is out, unless nothing is before it."""
        before = self.record
        self._act(lambda: self.releases.refuse(MODEL, before.revision - behind, tag(version), **WHO, action=action))
        after = self.record
        assert self.releases.refuse(MODEL, before.revision, tag(version), **WHO, action=action) == after or behind
        self.changes = self.record.revision
        alone = before.champion == Variant(tag(version), version, before.champion.weight) and before.previous is None
        assert behind or alone or tag(version) not in [variant.release for variant in after.variants]

    @precondition(lambda self: self.changes > 1)
    @rule()
    def lose_the_last_history_line(self) -> None:
        """As a kill between record and history does."""
        path = self.releases.path(MODEL).with_suffix(".history.jsonl")
        lines = path.read_bytes().splitlines(keepends=True)
        if json.loads(lines[-1])["revision"] == self.record.revision:
            os.truncate(path, sum(map(len, lines[:-1])))

    @invariant()
    def history_leads_to_the_record(self) -> None:
        record, history = self.record, self.releases.history(MODEL)
        assert [change.revision for change in history] == list(range(1, self.changes + 1))
        assert history[-1].after == record.variants
        assert all(after.before == before.after for before, after in pairwise(history))

    @invariant()
    def the_traffic_is_sound(self) -> None:
        """One champion, at most one challenger and one shadow, no release twice; those who answer share 100 percent."""
        record = self.record
        held = [variant.role for variant in record.variants]
        assert held.count("champion") == 1 and len(held) == len(set(held))
        assert len({variant.release for variant in record.variants}) == len(held)
        assert sum(variant.weight for variant in record.answering) == 100
        assert record.shadow is None or record.shadow.weight == 0
        assert (record.limits is None) == (record.canary is None) and bool(record.steps) == (record.canary is not None)
        assert record.canary is None or record.canary.weight == record.steps[record.step]
        assert record.previous is None or record.previous.release != record.champion.release
        assert record.previous is None or record.previous.release not in refusals(self.releases.history(MODEL))

    @invariant()
    def the_file_says_the_same(self) -> None:
        """Written and read again it is the same record."""
        assert ReleaseRecord.from_json(json.loads(json.dumps(self.record.to_json()))) == self.record

    def teardown(self) -> None:
        self.folder.cleanup()


TestReleaseLife = ReleaseLife.TestCase
TestReleaseLife.settings = settings(max_examples=40, stateful_step_count=20)
