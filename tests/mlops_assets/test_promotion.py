"""Promotion and rollback on real stores: traffic and alias agree when it is over, whoever tries, whatever is killed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import dagster as dg
import pytest

from mlops_assets.links.champion import champion_asset
from mlops_assets.links.endpoint import endpoint_asset
from mlops_assets.promotion import PARITY, REFUSED, REFUSED_BECAUSE, ROLLED_BACK, NotPromotableError
from resources.environment import PROJECT, resources_for
from resources.mlflow import UnknownModelVersionError
from resources.releases import StaleReleaseError, UnknownReleaseError


class KilledError(BaseException):
    """What a process that is killed does not catch."""


def promote(registered: Any, version: str | None = None, by: str = "ann", why: str = "better") -> Any:
    return registered.promotion.promote(registered.model, version, by=by, why=why)


def roll_back(registered: Any, by: str = "bob", why: str = "worse") -> Any:
    return registered.promotion.rollback(registered.model, by=by, why=why)


def materialize(registered: Any, link: Any) -> dg.ExecuteInProcessResult:
    """An asset of the chain on the test's own stores."""
    upstream = [dg.AssetSpec(key) for key in link(registered.model).asset_deps[link(registered.model).key]]
    resources = {**resources_for("test"), "promotion": registered.promotion}
    return dg.materialize([link(registered.model), *upstream], resources=resources, raise_on_error=False)


def problem(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(event.step_failure_data.error.to_string() for event in result.get_step_failure_events())


def test_a_promotion_moves_traffic_and_alias_and_writes_both_down(registered):
    """Who, when, why, from where, to where; in the history of the traffic and in that of the champion."""
    promote(registered, "1", by="ann", why="first")
    promote(registered, "2", by="bob", why="better")
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")
    moves = registered.promotion.champions.history(registered.model.id)
    assert [(move.before, move.after, move.by, move.why) for move in moves] == [
        (None, "1", "ann", "first"),
        ("1", "2", "bob", "better"),
    ]
    changes = registered.promotion.releases.history(registered.model.id)
    assert [(change.by, change.why, change.after[0].version) for change in changes] == [
        ("ann", "first", "1"),
        ("bob", "better", "2"),
    ]


def test_without_a_version_the_running_canary_is_promoted_else_the_newest_that_passed(registered):
    promote(registered, "1")
    tag = registered.promotion.bento_of(registered.model, "2")
    registered.promotion.releases.start_canary(registered.model.id, tag, "2", [10, 100], by="x", why="y")
    promote(registered)
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")
    promote(registered)
    assert (registered.traffic, registered.alias) == ({"4": 100}, "4"), "3 did not pass its gate"


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (
            "3",
            r"'flights/late_arrival' cannot promote version 3: it did not pass its gate \(promotable: .*2.*Materialize",
        ),
        ("9", r"cannot promote version 9: it does not exist \(promotable: .*1"),
    ],
)
def test_what_did_not_pass_its_gate_is_never_promoted(registered, version, says):
    """Nothing moves, and the error says what could be."""
    promote(registered, "1")
    with pytest.raises(NotPromotableError, match=says):
        promote(registered, version)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")
    assert len(registered.promotion.champions.history(registered.model.id)) == 1


def test_a_model_without_any_passed_version_says_so(registered):
    with pytest.raises(NotPromotableError, match=r"cannot promote anything: no version passed .*promotable: none"):
        registered.promotion.promote(registered.model.with_(name="unheard_of"), None, by="ann", why="")


def test_a_rollback_returns_both_and_the_version_left_does_not_come_back_by_itself(registered):
    """The champion asset passes it over until somebody promotes it again, or a newer one passes."""
    promote(registered, "1")
    promote(registered, "2")
    registered.promotion.mlflow.tag_version(registered.model.registered_name, "4", {"gate": REFUSED})
    roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")
    assert materialize(registered, champion_asset).success
    assert registered.alias == "1"
    newer = registered.register()
    assert materialize(registered, champion_asset).success
    assert registered.alias == newer


def test_a_second_rollback_undoes_the_first_also_for_the_champion_asset(registered):
    """Forward again by the same word: the version is no longer one that was left."""
    promote(registered, "1")
    promote(registered, "2")
    roll_back(registered)
    roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")
    assert registered.tags("2")[ROLLED_BACK] == "false"


def test_going_further_back_leaves_every_newer_version_that_had_traffic(registered):
    """`promote --version 1` is a step back: neither 4 nor 2 returns by itself; 4 does when it is promoted again."""
    for version in ("1", "2", "4", "1"):
        promote(registered, version)
    assert registered.promotion.next_champion(registered.model).version == "1"
    promote(registered, "4")
    assert registered.promotion.next_champion(registered.model).version == "4"


def test_a_newer_candidate_that_never_had_traffic_is_not_passed_over(registered):
    """Promoting the canary by hand says nothing about a candidate that passed meanwhile."""
    promote(registered, "1")
    promote(registered, "2")
    assert registered.promotion.next_champion(registered.model).version == "4"


def test_a_canary_that_is_rolled_back_gives_the_alias_back(registered):
    """The champion asset had moved the alias when the canary began."""
    promote(registered, "1")
    assert materialize(registered, champion_asset).success
    registered.promotion.bento_of(registered.model, "4")
    assert materialize(registered, endpoint_asset).success
    assert (registered.traffic, registered.alias) == ({"1": 90, "4": 10}, "4")
    roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")


def test_nothing_to_return_to_is_said_and_nothing_moves(registered):
    promote(registered, "1")
    with pytest.raises(UnknownReleaseError, match=r"no previous release to return to"):
        roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")


def test_an_endpoint_without_a_champion_says_what_to_materialize(registered):
    result = materialize(registered, endpoint_asset)
    assert not result.success
    assert "no champion with a Bento. Materialize its bento first" in problem(result)


def test_a_champion_without_a_passed_candidate_says_where_to_look(registered):
    for version in ("1", "2", "4"):
        registered.promotion.mlflow.tag_version(registered.model.registered_name, version, {"gate": REFUSED})
    result = materialize(registered, champion_asset)
    assert not result.success
    assert "No version of model 'flights/late_arrival' passed its gate" in problem(result)


# -- splits and shadows -----------------------------------------------------------------------------


def test_a_split_is_of_versions_that_passed_and_leaves_the_alias(registered):
    """The champion stays the champion while both answer; the one that loses does not come back by itself."""
    promote(registered, "1")
    split = partial(registered.promotion.split, registered.model, by="ann", why="is it better?")
    record = split("2", 20)
    assert (registered.traffic, registered.alias, record.limits) == ({"1": 80, "2": 20}, "1", None)
    with pytest.raises(NotPromotableError, match="it did not pass its gate"):
        split("3", 20)
    registered.promotion.mlflow.tag_version(registered.model.registered_name, "4", {PARITY: REFUSED})
    with pytest.raises(NotPromotableError, match="differ from those offline"):
        split("4", 20)
    registered.promotion.champion_only(registered.model, by="ann", why="no")
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")
    assert registered.tags("2")[ROLLED_BACK] == "true"


def test_the_winner_of_a_split_is_promoted_without_its_number(registered):
    promote(registered, "1")
    registered.promotion.split(registered.model, "2", 20, by="ann", why="is it better?")
    promote(registered)
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")


def test_a_split_in_place_of_a_canary_takes_the_alias_back(registered):
    """The canary's version had moved it; it was left for a reason."""
    promote(registered, "1")
    assert materialize(registered, champion_asset).success
    registered.promotion.bento_of(registered.model, "4")
    assert materialize(registered, endpoint_asset).success
    assert registered.alias == "4"
    registered.promotion.split(registered.model, "2", 20, by="ann", why="the other one")
    assert (registered.traffic, registered.alias) == ({"1": 80, "2": 20}, "1")
    assert registered.tags("4")[ROLLED_BACK] == "true"


def test_a_canary_does_not_end_a_split(registered):
    """The endpoint asset says what runs and how to end it; the experiment goes on."""
    promote(registered, "1")
    registered.promotion.split(registered.model, "2", 20, by="ann", why="is it better?")
    assert materialize(registered, champion_asset).success
    registered.promotion.bento_of(registered.model, "4")
    result = materialize(registered, endpoint_asset)
    assert not result.success and "an A/B split runs since" in problem(result)
    assert registered.traffic == {"1": 80, "2": 20}


def test_any_registered_version_may_be_a_shadow(registered):
    """Also one that did not pass its gate: nobody gets its answers, and it is never marked nor crowned for it."""
    promote(registered, "1")
    registered.promotion.shadow(registered.model, "3", by="ann", why="how bad is it?")
    assert (registered.traffic, registered.alias) == ({"1": 100, "3": 0}, "1")
    promote(registered, "2")
    roll_back(registered)
    assert registered.traffic == {"1": 100, "3": 0} and ROLLED_BACK not in registered.tags("3")
    registered.promotion.unshadow(registered.model, by="ann", why="seen")
    assert registered.traffic == {"1": 100}


def test_a_shadow_of_a_version_that_does_not_exist_says_what_does(registered):
    promote(registered, "1")
    with pytest.raises(UnknownModelVersionError, match=r"has no version '9' \(known: 4, 3, 2, 1\)"):
        registered.promotion.shadow(registered.model, "9", by="ann", why="?")


# -- what serving processes refuse -------------------------------------------------------------------


def refuse(registered: Any, version: str, why: str = "no model file") -> None:
    """As a serving process does, that knows no registry."""
    releases, model = registered.promotion.releases, registered.model.id
    tag = registered.promotion.bento_of(registered.model, version)
    releases.refuse(model, releases.read(model).revision, tag, by="serving pod-1", why=why)


def test_the_registry_is_brought_after_what_was_refused(registered):
    """The alias goes to what answers instead; the version is marked, with the reason, not to come back by itself."""
    promote(registered, "1")
    promote(registered, "2")
    refuse(registered, "2")
    assert (registered.traffic, registered.alias) == ({"1": 100}, "2")
    assert registered.promotion.settle(registered.model, by="sensor") is not None
    tags = registered.tags("2")
    assert registered.alias == "1" and tags[ROLLED_BACK] == "true"
    assert tags[REFUSED_BECAUSE].startswith("refused at ") and tags[REFUSED_BECAUSE].endswith(": no model file")
    last = registered.promotion.champions.history(registered.model.id)[-1]
    assert (last.by, last.before, last.after) == ("sensor", "2", "1") and "no model file" in last.why


def test_the_newest_is_not_what_was_just_refused(registered):
    """Before the sensor's next tick neither a person nor the champion asset returns to it by not naming a version."""
    promote(registered, "1")
    promote(registered, "4")
    refuse(registered, "4")
    assert materialize(registered, champion_asset).success
    assert registered.alias == "2"
    refuse(registered, "4")  # it has no traffic: nothing happens
    promote(registered)
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")


def test_settling_again_changes_nothing(registered):
    """Nor where nothing was refused, nor before the first release."""
    assert registered.promotion.settle(registered.model, by="sensor") is None
    promote(registered, "1")
    assert registered.promotion.settle(registered.model, by="sensor") is None
    promote(registered, "2")
    refuse(registered, "2")
    assert registered.promotion.settle(registered.model, by="sensor") is not None
    moves = registered.promotion.champions.history(registered.model.id)
    assert registered.promotion.settle(registered.model, by="sensor") is None
    assert registered.promotion.champions.history(registered.model.id) == moves


def test_an_alias_that_is_ahead_is_left_when_another_was_refused(registered):
    """A newer candidate became champion meanwhile, and is on its way to the traffic."""
    promote(registered, "1")
    promote(registered, "2")
    assert materialize(registered, champion_asset).success
    refuse(registered, "2")
    assert registered.alias == "4"
    assert registered.promotion.settle(registered.model, by="sensor") is not None
    assert registered.alias == "4" and registered.tags("2")[ROLLED_BACK] == "true"


def test_what_was_refused_may_be_promoted_again_by_hand(registered):
    """It is mended, or it was the machine's fault: the marks go."""
    promote(registered, "1")
    promote(registered, "2")
    refuse(registered, "2")
    registered.promotion.settle(registered.model, by="sensor")
    promote(registered, "2")
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")
    assert (registered.tags("2")[ROLLED_BACK], registered.tags("2")[REFUSED_BECAUSE]) == ("false", "")
    assert registered.promotion.settle(registered.model, by="sensor") is None


def test_a_version_that_was_deleted_from_the_registry_holds_nothing_up(registered):
    """Neither the settling of its refusal nor a later rollback asks for what is no more."""
    for version in ("1", "2", "4"):
        promote(registered, version)
    refuse(registered, "4")
    registered.promotion.mlflow.client().delete_model_version(registered.model.registered_name, "4")
    assert registered.promotion.settle(registered.model, by="sensor") is None
    roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")


def test_a_settling_that_was_killed_is_completed_by_the_next(registered, monkeypatch):
    """The version is marked and the process dies before the alias."""
    promote(registered, "1")
    promote(registered, "2")
    refuse(registered, "2")
    settle = partial(registered.promotion.settle, registered.model, by="sensor")
    killed_before_the_alias(registered, monkeypatch, settle)
    assert registered.alias == "2"
    settle()
    assert registered.alias == "1" and registered.tags("2")[ROLLED_BACK] == "true"


def test_a_shadow_that_was_refused_says_nothing_of_its_version(registered):
    """It may have been too big for the memory left to it; it is out, and may still be promoted."""
    promote(registered, "1")
    registered.promotion.shadow(registered.model, "2", by="ann", why="curious")
    refuse(registered, "2")
    assert registered.promotion.settle(registered.model, by="sensor") is None
    assert registered.traffic == {"1": 100} and ROLLED_BACK not in registered.tags("2")


def test_the_endpoint_asset_settles_before_it_releases(registered):
    """Else it would begin the canary again that was just refused."""
    promote(registered, "1")
    registered.promotion.mlflow.tag_version(registered.model.registered_name, "4", {"gate": REFUSED})
    assert materialize(registered, champion_asset).success and materialize(registered, endpoint_asset).success
    assert registered.traffic == {"1": 90, "2": 10}
    refuse(registered, "2")
    assert materialize(registered, endpoint_asset).success
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")


# -- two at once ----------------------------------------------------------------------------------


def agree(registered: Any) -> bool:
    """Both histories are unbroken, of the same versions in the same order, and traffic and alias are where they end."""
    moves = registered.promotion.champions.history(registered.model.id)
    changes = registered.promotion.releases.history(registered.model.id)
    unbroken = all(one.after == other.before for one, other in (*pairwise(moves), *pairwise(changes)))
    same = [move.after for move in moves] == [change.after[0].version for change in changes]
    return unbroken and same and registered.traffic == {moves[-1].after: 100} and registered.alias == moves[-1].after


def test_promotions_at_once_are_serialised_and_the_losers_are_told_who_won(registered):
    """Traffic at one version and the alias at the other would be the end of two mixed promotions."""
    promote(registered, "1")

    def tried(version: str) -> str | None:
        try:
            return promote(registered, version, by=f"promoter of {version}") and None
        except StaleReleaseError as lost:
            return str(lost)

    with ThreadPoolExecutor(4) as pool:
        lost = [told for told in pool.map(tried, ["1", "2"] * 6) if told]
    assert agree(registered)
    assert lost and all(re.search(r"promoter of [12] did 'promote' at .*Nothing was changed", told) for told in lost)


def test_of_two_rollbacks_at_once_one_wins_and_does_not_undo_the_other(registered):
    """Two people in the worst hour: the second to come would else go forward again to what both wanted to leave."""
    promote(registered, "1")
    promote(registered, "2")
    with ThreadPoolExecutor(2) as pool:
        with registered.promotion.champions.turn(registered.model.id):
            both = [pool.submit(roll_back, registered, by=name) for name in ("ann", "bob")]
            time.sleep(0.3)  # both have looked, and wait for their turn
        (lost,) = [error for one in both if (error := one.exception())]
    assert isinstance(lost, StaleReleaseError) and "did 'rollback'" in str(lost)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")


def test_a_rollback_that_a_circuit_breaker_came_before_leaves_the_champion(registered):
    """Both want the canary away; without it, a rollback would go on and take the good champion away too."""
    promote(registered, "1")
    promote(registered, "2")
    tag = registered.promotion.bento_of(registered.model, "4")
    registered.promotion.releases.start_canary(registered.model.id, tag, "4", [10, 100], by="x", why="y")
    with ThreadPoolExecutor(1) as pool:
        with registered.promotion.champions.turn(registered.model.id):
            rollback = pool.submit(roll_back, registered)
            time.sleep(0.3)  # it has looked, and waits for its turn
            refuse(registered, "4", why="too slow")
        lost = rollback.exception()
    assert isinstance(lost, StaleReleaseError) and "serving pod-1 did 'refused'" in str(lost)
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")


PROMOTE = """
import sys
from mlops_assets.catalog import gather
from mlops_assets.promotion import Promotion
from resources.mlflow import UnknownModelVersionError
from resources.releases import StaleReleaseError
model, promotion = gather().model("flights/late_arrival"), Promotion.here()
turn = 0
while turn < 4:
    try:
        promotion.promote(model, sys.argv[1], by=f"process {sys.argv[1]}", why=f"turn {turn}")
        turn += 1
    except StaleReleaseError:
        pass
"""


def test_promotions_at_once_are_serialised_between_processes(registered):
    """A person's command beside another's, or beside a run of the daemon's."""
    promote(registered, "1")
    processes = [subprocess.Popen([sys.executable, "-c", PROMOTE, version], cwd=PROJECT) for version in "12"]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert agree(registered)
    by = {move.by for move in registered.promotion.champions.history(registered.model.id)}
    assert "process 2" in by


# -- kills between two steps --------------------------------------------------------------------------


def killed_before_the_alias(registered: Any, monkeypatch: pytest.MonkeyPatch, verb: Any) -> None:
    """The traffic moves, then the process dies."""

    def dies(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("resources.champions.ChampionStore.move", dies)
        with pytest.raises(KilledError):
            verb()


def test_a_promotion_that_was_killed_is_completed_by_asking_again(registered, monkeypatch):
    promote(registered, "1")
    killed_before_the_alias(registered, monkeypatch, lambda: promote(registered, "2"))
    assert (registered.traffic, registered.alias) == ({"2": 100}, "1")
    promote(registered, "2")
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")
    assert len(registered.promotion.releases.history(registered.model.id)) == 2


def test_a_rollback_that_was_killed_is_completed_by_asking_again_not_undone(registered, monkeypatch):
    """Asked once more it finishes; asked after that it is a rollback of its own."""
    promote(registered, "1")
    promote(registered, "2")
    killed_before_the_alias(registered, monkeypatch, lambda: roll_back(registered))
    assert (registered.traffic, registered.alias) == ({"1": 100}, "2")
    roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"1": 100}, "1")
    roll_back(registered)
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")


def test_a_kill_between_history_and_alias_is_completed_by_the_next_move(registered, monkeypatch):
    """The champion's history is written first; it says where the alias was going; the next asking takes it there."""
    promote(registered, "1")

    def dies(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("resources.mlflow.MlflowResource.set_alias", dies)
        with pytest.raises(KilledError):
            promote(registered, "2")
    assert registered.promotion.champions.history(registered.model.id)[-1].after == "2"
    assert registered.alias == "1"
    promote(registered, "2")
    assert (registered.traffic, registered.alias) == ({"2": 100}, "2")


def test_a_turn_is_given_back_by_who_is_killed(registered, monkeypatch):
    """The next promotion does not wait for a dead one."""
    promote(registered, "1")
    killed_before_the_alias(registered, monkeypatch, lambda: promote(registered, "2"))
    with registered.promotion.champions.turn(registered.model.id):
        assert registered.traffic == {"2": 100}
