"""The rollout sensor over real stores: what the log says of a canary moves traffic and alias together."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlops_assets.rollout import evidence
from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.prediction_log import PredictionLog
from resources.alerts import outbox
from resources.decisions import Decided, DecisionStore
from resources.releases import Variant

if TYPE_CHECKING:
    from conftest import Platform

CUTOFF = "2013-07-01"
MIN_REQUESTS = 50  # of a canary as `Serve` declares it by default


def answer(model: str, variant: Variant, count: int, latency_ms: float, instead_of: str | None = None) -> None:
    """The log of so many answers of a variant, each taking so long."""
    writer, now = PredictionLog().writer(), datetime.now(UTC)
    question = Question(now, [f"{variant.role} {n}" for n in range(count)], {})
    inputs, said = RowInputs([()] * count), [0.5] * count
    writer.write(Answers(model, variant, question, (), inputs, said, latency_ms=latency_ms, instead_of=instead_of))
    writer.close()


def rollouts(platform: Platform) -> list[Decided]:
    return [one for one in DecisionStore().history(platform.model.id) if one.kind == "rollout"]


def alerts() -> list[str]:
    """The titles of what people were told."""
    return [told.alert.title for sent in outbox.last(10) for told in sent.message.told]


def test_a_slow_canary_is_rolled_back_with_the_alias(platform: Platform) -> None:
    """The sensor's tick takes its traffic away, says why, and the version is not crowned again by itself."""
    assert platform.train(CUTOFF).ok
    during = platform.published
    champion, challenger = during["release"].variants
    assert during["alias"] == challenger.version == "2"
    answer(platform.model.id, champion, 2 * MIN_REQUESTS, 2.0)
    answer(platform.model.id, challenger, MIN_REQUESTS - 1, 200.0)
    assert f"hold at 40 %: challenger has {MIN_REQUESTS - 1}" in platform.tick("rollout").skip_reason.skip_message
    assert platform.published == during
    answer(platform.model.id, challenger, 1, 200.0)
    tick = platform.tick("rollout")
    assert "roll back at 40 %: takes 200.0 ms" in tick.skip_reason.skip_message
    traffic, check = tick.asset_events
    assert traffic.metadata["changed_by"].value == "sensors.rollout" and check.passed, "the asset's page shows it"
    after = platform.published
    assert [(v.version, v.weight) for v in after["release"].variants] == [("1", 100)] and after["alias"] == "1"
    assert "takes 200.0 ms" in after["moves"][-1].why and after["release"].by == "sensors.rollout"
    hold, back = rollouts(platform)
    assert (hold.outcome, hold.reasons) == ("hold", ("at 40 %: waits for requests",))
    assert back.outcome == "roll back" and "takes 200.0 ms" in back.reasons[0]
    assert alerts() == ["flights/late_arrival version 2 was rolled back"]
    assert platform.run("champion", "bento", "endpoint").ok and platform.published == after
    assert "no canary is running" in platform.tick("rollout").skip_reason.skip_message


def test_a_canary_that_fails_is_rolled_back_though_the_champion_answered_for_it(platform: Platform) -> None:
    """What the log says was answered instead of the challenger are its errors; a few are enough."""
    assert platform.train(CUTOFF).ok
    champion, challenger = platform.published["release"].variants
    answer(platform.model.id, champion, 2 * MIN_REQUESTS, 2.0)
    answer(platform.model.id, champion, 3, 500.0, instead_of=challenger.release)
    seen = evidence(platform.published["release"])
    assert (seen["challenger"].requests, seen["challenger"].errors) == (3, 3)
    assert (seen["champion"].requests, seen["champion"].latency_ms) == (2 * MIN_REQUESTS, 2.0), "no fault of its own"
    assert "roll back at 40 %: 3 of 3 requests failed" in platform.tick("rollout").skip_reason.skip_message
    after = platform.published
    assert [(v.version, v.weight) for v in after["release"].variants] == [("1", 100)] and after["alias"] == "1"


def test_a_canary_that_the_endpoint_refused_gives_the_alias_back(platform: Platform) -> None:
    """A serving process moves the traffic alone; the next tick brings the registry after it, and says so in Dagster."""
    assert platform.train(CUTOFF).ok
    during, model = platform.published, platform.model
    platform.tick("rollout")
    release = during["release"].challenger.release
    platform.promotion.releases.refuse(
        model.id, during["release"].revision, release, by="serving pod-1", why="slow", action="circuit breaker"
    )
    assert platform.published["alias"] == "2"
    tick = platform.tick("rollout")
    traffic, check = tick.asset_events
    assert traffic.metadata["changed_by"].value == "serving pod-1" and check.passed
    after, tags = platform.published, platform.promotion.mlflow.version(model.registered_name, "2").tags
    assert after["alias"] == "1" and after["moves"][-1].by == "sensors.rollout"
    assert tags["rolled_back"] == "true" and tags["refused_because"].startswith("circuit breaker at ")
    (back,) = [one for one in rollouts(platform) if one.outcome == "roll back"]
    assert back.by == "serving pod-1" and alerts() == ["flights/late_arrival version 2 was rolled back"]
    assert platform.run("champion", "bento", "endpoint").ok and platform.published == after, "it stays away"
    assert platform.tick("rollout").asset_events == []


def test_evidence_is_of_its_own_step_alone(platform: Platform) -> None:
    """Answers written down before a moment are no evidence of what came after it."""
    record = platform.published["release"]
    answer(platform.model.id, record.champion, 5, 1.0)
    later = replace(record, began=datetime.now(UTC).isoformat())
    answer(platform.model.id, record.champion, 3, 7.0)
    answer(platform.model.id, replace(record.champion, release="one before"), 3, 99.0)
    assert {role: (seen.requests, seen.latency_ms) for role, seen in evidence(later).items()} == {"champion": (3, 7.0)}
