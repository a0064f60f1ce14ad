"""A candidate that needs a person's word waits for it as state: nothing runs, nothing moves, nothing is forgotten."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from mlops_assets import Approval, Serve
from mlops_assets.approval import NoApprovalNeededError, decide, tell
from mlops_assets.catalog import gather
from mlops_assets.cli import app
from mlops_assets.links.approval import approval_asset
from mlops_assets.links.champion import champion_asset
from mlops_assets.links.endpoint import endpoint_asset
from mlops_assets.promotion import NotPromotableError
from resources.alerts import AlertResource
from resources.approvals import ApprovalStore, DecidedApprovalError
from resources.decisions import DecisionStore
from resources.environment import PROJECT, resources_for
from resources.events import Inbox
from resources.mlflow import UnknownModelVersionError

if TYPE_CHECKING:
    from conftest import Platform

    from resources.alerts import Alert

CUTOFF = "2013-07-01"
LATER = ApprovalStore(lambda: datetime.now(UTC) + timedelta(days=8))
RELEASE = tuple(f"flights/late_arrival/{link}" for link in ("champion", "bento", "endpoint"))


def materialize(asking: Any, link: Any, config: dict[str, Any] | None = None) -> dg.ExecuteInProcessResult:
    """An asset of the chain on the test's own stores."""
    asset = link(asking.model)
    upstream = [dg.AssetSpec(key) for key in asset.asset_deps[asset.key]]
    resources = {**resources_for("test"), "promotion": asking.promotion}
    run_config = {"ops": {"__".join(asset.key.path): {"config": config}}} if config else None
    return dg.materialize([asset, *upstream], resources=resources, raise_on_error=False, run_config=run_config)


def crowned(asking: Any) -> dict[str, Any] | None:
    """What the champion asset says of itself; None where it materialized nothing."""
    ran = materialize(asking, champion_asset)
    assert ran.success
    found = ran.asset_materializations_for_node("__".join(champion_asset(asking.model).key.path))
    return {name: value.value for name, value in found[0].metadata.items()} if found else None


def release(asking: Any) -> dict[str, Any] | None:
    """What the run of an approval does, without the parity of features, for which there are none here."""
    told = crowned(asking)
    asking.promotion.bento_of(asking.model, asking.alias)
    assert materialize(asking, endpoint_asset).success
    return told


def trouble(ran: dg.ExecuteInProcessResult) -> str:
    return "\n".join(event.step_failure_data.error.to_string() for event in ran.get_step_failure_events())


@pytest.fixture
def released(registered: Any) -> Any:
    """Version 1 is released; 2 and 4 passed their gate since."""
    registered.promotion.promote(registered.model, "1", by="ann", why="first")
    return registered


@pytest.fixture
def asking(released: Any) -> Any:
    """The same model, that asks for approval from now on and takes all traffic at once: nothing was asked yet."""
    return replace(released, model=released.model.with_(approval=Approval(), serve=Serve(canary=[100])))


@pytest.fixture
def waiting(asking: Any) -> Any:
    """Version 4 waits."""
    assert crowned(asking) is None
    return asking


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Alert]:
    """The alerts that were sent, in order; they go where they go."""
    sent: list[Alert] = []
    real = AlertResource.send

    def send(self: AlertResource, alert: Alert) -> bool:
        sent.append(alert)
        return real(self, alert)

    monkeypatch.setattr(AlertResource, "send", send)
    return sent


def state(asking: Any, version: str = "4") -> str | None:
    found = asking.promotion.approvals.read(asking.model.id, version)
    return found.state if found else None


def word(asking: Any, verdict: Any, version: str = "4", by: str = "ann", why: str = "looks right") -> Any:
    return decide(asking.model, version, verdict, asking.promotion, resources_for()["alerts"], by=by, why=why)


def told_all(asking: Any, promotion: Any = None) -> list[str]:
    """What the sensor's tick does; the states that were news."""
    news = tell(asking.model, promotion or asking.promotion, resources_for()["alerts"])
    return [item.state for item in news]


def events() -> list[tuple[str, ...]]:
    return [one.event.assets for one in Inbox().open("events")]


# -- asked ------------------------------------------------------------------------------------------


def test_a_training_run_that_finds_a_candidate_asks_and_ends_green(platform: Platform, told: list[Alert]) -> None:
    """The champion, its Bento and the traffic stay as they are; people are told what waits and what to type."""
    asking = platform.declared(approval=Approval())
    before = asking.published
    ran = asking.train(CUTOFF)
    assert ran.ok, ran.trouble
    assert "candidate" in ran.facts and not {"champion", "bento", "endpoint"} & ran.facts.keys()
    after = asking.published
    assert {**after, "versions": before["versions"]} == before and after["versions"] == ["2", "1"]
    assert "The alias stays at 1: version 2 waits for approval" in ran.checks["alias_is_newest_passed"].description
    (alert,) = told
    assert alert.title == "flights/late_arrival version 2 waits for approval" and alert.group == asking.model.id
    assert "mlops approve flights/late_arrival 2 --why" in alert.suggestion and "roc_auc 0." in alert.text
    assert alert.link.endswith("/assets/flights/late_arrival/approval") and "/versions/2" in alert.links["version"]
    given = {"version": "2", "decision": "approve", "by": "ann", "why": "looks right"}
    assert asking.run("approval", config=given).ok and events() == [RELEASE]
    assert asking.run("champion", "bento", "endpoint").ok
    assert [(v.version, v.weight) for v in asking.published["release"].variants] == [("1", 60), ("2", 40)]


def test_a_question_is_asked_once(waiting: Any, told: list[Alert]) -> None:
    """However often the champion is materialized, and the sensor ticks."""
    assert crowned(waiting) is None and told_all(waiting) == [] and told == []
    assert waiting.tags("4")["approval"] == "waiting" and waiting.alias == "1"


def test_a_first_candidate_is_asked_about_too(registered: Any) -> None:
    """Nothing is released unseen; what may be crowned is said where nothing may be."""
    asking = replace(registered, model=registered.model.with_(approval=Approval()))
    assert crowned(asking) is None and (asking.alias, asking.traffic, state(asking)) == (None, {}, "waiting")
    word(asking, "refused")
    ran = materialize(asking, champion_asset)
    assert not ran.success and "passed its gate and was approved. Look at" in trouble(ran)


def test_a_newer_candidate_is_waited_for_instead_of_an_older_one(waiting: Any) -> None:
    newer = waiting.register()
    assert crowned(waiting) is None
    assert (state(waiting), state(waiting, newer)) == ("superseded", "waiting")
    assert waiting.tags("4")["approval_because"].endswith(f"version {newer} came after it")
    with pytest.raises(DecidedApprovalError, match=f"version {newer} came after it"):
        word(waiting, "approved")


ASK = """
from mlops_assets import Approval
from mlops_assets.catalog import gather
from mlops_assets.promotion import Promotion
model = gather().model("flights/late_arrival").with_(approval=Approval())
print(Promotion.here().crown_newest(model, by="a run").waiting.version)
"""


def process(*argv: str) -> str:
    ran = subprocess.run([sys.executable, *argv], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_question_survives_a_restart_of_everything(released: Any) -> None:
    """One process asks and ends; another, that never saw it, lists what waits."""
    assert process("-c", ASK).strip() == "4"
    listed = json.loads(process("-m", "mlops_assets.cli", "approvals", "--waiting", "--json"))
    assert [(one["model"], one["version"], one["state"]) for one in listed] == [(released.model.id, "4", "waiting")]


# -- given ------------------------------------------------------------------------------------------


def test_once_given_it_is_released_by_a_run_of_its_own_once(waiting: Any) -> None:
    """One event, also when two people say yes; the history says who and why."""
    assert events() == []
    word(waiting, "approved")
    assert word(waiting, "approved", by="bob", why="me too").by == "ann"
    assert events() == [RELEASE] and waiting.tags("4")["approval"] == "approved"
    told = release(waiting)
    assert told is not None and told["version"] == "4" and (waiting.traffic, waiting.alias) == ({"4": 100}, "4")
    moves = waiting.promotion.champions.history(waiting.model.id)
    assert moves[-1].why.endswith("approved by ann: looks right")
    said = [one for one in DecisionStore().history(waiting.model.id) if one.kind == "approval"]
    assert [(one.outcome, one.by) for one in said][1:] == [("approved", "ann")] and said[0].outcome == "waiting"
    assert told_all(waiting) == [] and len(events()) == 1


def test_an_approval_before_a_canary_begins_the_canary(waiting: Any) -> None:
    """Two parts that are free of each other: first the word, then the steps."""
    steps = replace(waiting, model=waiting.model.with_(serve=Serve(canary=[10, 100])))
    word(steps, "approved")
    release(steps)
    assert (steps.traffic, steps.alias) == ({"1": 90, "4": 10}, "4")


def test_an_approval_during_a_canary_begins_the_next_one(waiting: Any) -> None:
    """A newer version waits and the canary goes on; once approved it takes the canary's place, and the alias."""
    steps = replace(waiting, model=waiting.model.with_(serve=Serve(canary=[10, 100])))
    word(steps, "approved")
    release(steps)
    newer = steps.register()
    assert crowned(steps) is None and (steps.traffic, steps.alias) == ({"1": 90, "4": 10}, "4")
    word(steps, "approved", newer)
    release(steps)
    assert (steps.traffic, steps.alias) == ({"1": 90, newer: 10}, newer)


def test_a_version_that_is_approved_is_crowned_while_a_newer_one_waits(waiting: Any) -> None:
    """Its run came late; the newer question stands, and is said on the asset's page."""
    word(waiting, "approved")
    newer = waiting.register()
    told = crowned(waiting)
    assert told is not None and (told["version"], told["waits_for_approval_of"]) == ("4", newer)
    assert (waiting.alias, state(waiting, newer)) == ("4", "waiting")


def test_a_rolled_back_version_does_not_return_because_it_was_approved(waiting: Any) -> None:
    word(waiting, "approved")
    release(waiting)
    waiting.promotion.rollback(waiting.model, by="ann", why="it was slow")
    assert (waiting.traffic, waiting.alias) == ({"1": 100}, "1")
    crowned(waiting)
    assert waiting.alias == "1"


def test_words_at_once_are_one_word(waiting: Any) -> None:
    """Ten people, half of them against: one is first, and everything follows that one."""

    def says(number: int) -> str:
        try:
            return str(word(waiting, "approved" if number % 2 else "refused", by=f"p{number}").state)
        except DecidedApprovalError:
            return "too late"

    with ThreadPoolExecutor(5) as pool:
        heard = set(pool.map(says, range(10)))
    told_all(waiting)
    assert heard == {state(waiting), "too late"} and waiting.tags("4")["approval"] == state(waiting)
    assert len(events()) == (state(waiting) == "approved")


def test_a_killed_decider_is_made_up_for_by_the_sensor(waiting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The word is in the database, and the process dies before anybody is told."""

    class KilledError(BaseException):
        pass

    def dies(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr("mlops_assets.approval._alert", dies)
        with pytest.raises(KilledError):
            word(waiting, "approved")
    assert state(waiting) == "approved" and waiting.tags("4")["approval"] == "waiting" and events() == []
    assert told_all(waiting) == ["approved"]
    assert waiting.tags("4")["approval"] == "approved" and events() == [RELEASE]


# -- not given --------------------------------------------------------------------------------------


def test_a_refused_one_is_marked_and_never_comes_back_by_itself(waiting: Any) -> None:
    """The champion asset materializes the champion of before as it always did; the registry says who refused."""
    word(waiting, "refused", why="it hurts small airports")
    told = crowned(waiting)
    assert told is not None and (told["version"], told["moved"]) == ("1", False)
    assert waiting.tags("4")["approval"] == "refused" and "small airports" in waiting.tags("4")["approval_because"]
    assert events() == []
    with pytest.raises(DecidedApprovalError, match=r"is refused since .*mlops promote"):
        word(waiting, "approved")


def test_what_nobody_approved_in_time_is_marked_and_told(waiting: Any, told: list[Alert]) -> None:
    """Afterwards the word cannot be given, and it is asked about no more."""
    late = replace(waiting.promotion, approvals=LATER)
    assert told_all(waiting, late) == ["expired"]
    assert [alert.title for alert in told] == ["flights/late_arrival version 4 was not approved in time"]
    assert waiting.tags("4")["approval"] == "expired" and "nobody decided" in waiting.tags("4")["approval_because"]
    with pytest.raises(DecidedApprovalError, match="is expired since"):
        word(waiting, "approved")
    kept = crowned(waiting)
    assert kept is not None and kept["version"] == "1" and state(waiting) == "expired"
    assert told_all(waiting, late) == [] and len(told) == 1


def test_a_version_that_was_deleted_since_cannot_be_approved_and_holds_nothing_up(waiting: Any) -> None:
    waiting.promotion.mlflow.client().delete_model_version(waiting.model.registered_name, "4")
    with pytest.raises(UnknownModelVersionError, match=r"no version '4' \(known: 3, 2, 1\)"):
        word(waiting, "approved")
    assert told_all(waiting, replace(waiting.promotion, approvals=LATER)) == ["expired"]
    assert crowned(waiting) is None and (waiting.alias, state(waiting, "2")) == ("1", "waiting"), "the next best"


def test_a_model_that_asks_nobody_says_so(released: Any) -> None:
    with pytest.raises(NoApprovalNeededError, match="becomes champion without approval"):
        word(released, "approved")


# -- promoted by hand -------------------------------------------------------------------------------


def test_who_promotes_by_hand_has_approved(waiting: Any) -> None:
    """Recorded as that person's approval; it is released already, so no run is started for it."""
    waiting.promotion.promote(waiting.model, None, by="bob", why="needed now")
    approval = waiting.promotion.approvals.read(waiting.model.id, "4")
    assert (approval.state, approval.by, approval.why) == ("approved", "bob", "promoted by hand: needed now")
    assert told_all(waiting) == ["approved"] and events() == []
    assert (waiting.traffic, waiting.tags("4")["approval"]) == ({"4": 100}, "approved")


def test_what_was_refused_is_promoted_by_its_number_alone(waiting: Any) -> None:
    """Not by naming no version: whoever overrules a no has to mean it."""
    word(waiting, "refused")
    promote = partial(waiting.promotion.promote, waiting.model, by="bob", why="all the same")
    promote(None)
    assert waiting.traffic == {"2": 100}, "the newest that nobody refused"
    promote("4")
    assert waiting.traffic == {"4": 100} and state(waiting) == "approved"
    with pytest.raises(NotPromotableError, match="did not pass its gate"):
        promote("3")
    assert state(waiting, "3") is None, "a person's word is no gate"


def test_an_older_version_promoted_by_hand_leaves_what_waits(waiting: Any) -> None:
    """Going back says nothing of a newer candidate."""
    waiting.promotion.promote(waiting.model, "2", by="bob", why="to be sure")
    assert state(waiting) == "waiting" and waiting.alias == "2"


# -- the asset --------------------------------------------------------------------------------------


def test_a_word_that_cannot_be_taken_fails_the_run_and_says_why(waiting: Any) -> None:
    """Too late, of nothing that exists, or by nobody."""
    given = {"version": "4", "decision": "approve", "by": "ann", "why": "looks right"}
    assert materialize(waiting, approval_asset, given).success and state(waiting) == "approved"
    for changed, says in (
        ({"decision": "refuse"}, "is approved since"),
        ({"version": "9"}, "has no version '9'"),
        ({"by": ""}, "Say who and why"),
    ):
        ran = materialize(waiting, approval_asset, {**given, **changed})
        assert not ran.success and says in trouble(ran)
    assert state(waiting) == "approved"


# -- the commands -----------------------------------------------------------------------------------


@pytest.fixture
def mlops(waiting: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`mlops(words...)`, where the model asks for approval."""
    catalog = gather()
    asks = replace(catalog, models={**catalog.models, waiting.model.id: waiting.model})
    monkeypatch.setattr("mlops_assets.catalog.gather", lambda: asks)
    monkeypatch.setenv("DAGSTER_HOME", "")  # commands set it; this restores it
    return lambda *words: CliRunner().invoke(app, words)


def test_a_person_says_yes_at_the_command_line_and_is_named(waiting: Any, mlops: Any) -> None:
    """What waits is listed with its number, which is what the command takes."""
    assert "waiting" in mlops("approvals").output
    said = mlops("approve", waiting.model.id, "4", "--why", "looked at it")
    assert said.exit_code == 0 and f"version 4 is approved by {getpass.getuser()}" in said.output
    assert state(waiting) == "approved" and events() == [RELEASE]
    assert json.loads(mlops("approvals", waiting.model.id, "--waiting", "--json").output) == []
    late = mlops("refuse", waiting.model.id, "4", "--why", "no")
    assert isinstance(late.exception, DecidedApprovalError) and state(waiting) == "approved"


def test_a_person_says_no_at_the_command_line(waiting: Any, mlops: Any) -> None:
    assert "version 4 is refused by" in mlops("refuse", waiting.model.id, "4", "--why", "too new").output
    (listed,) = json.loads(mlops("approvals", "--json").output)
    assert (listed["version"], listed["state"], listed["why"]) == ("4", "refused", "too new") and events() == []


def test_a_reason_is_asked_for(waiting: Any, mlops: Any) -> None:
    assert "Missing option '--why'" in mlops("approve", waiting.model.id, "4").output
    assert state(waiting) == "waiting"
