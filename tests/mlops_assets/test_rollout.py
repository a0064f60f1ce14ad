"""The rollout sensor over real stores: what the log says of a canary moves traffic and alias together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mlops_assets.rollout import MIN_REQUESTS, evidence
from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.prediction_log import PredictionLog
from resources.releases import Variant

if TYPE_CHECKING:
    from conftest import Platform

CUTOFF = "2013-07-01"


def answer(model: str, variant: Variant, count: int, latency_ms: float) -> None:
    """The log of so many answers of a variant, each taking so long."""
    writer, now = PredictionLog().writer(), datetime.now(UTC)
    question = Question(now, [f"{variant.role} {n}" for n in range(count)], {})
    writer.write(Answers(model, variant, question, (), RowInputs([()] * count), [0.5] * count, latency_ms=latency_ms))
    writer.close()


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
    assert platform.run("champion", "bento", "endpoint").ok and platform.published == after
    assert "no canary is running" in platform.tick("rollout").skip_reason.skip_message


def test_evidence_is_of_its_own_step_alone(platform: Platform) -> None:
    """Answers written down before a moment are no evidence of what came after it."""
    (champion,) = platform.published["release"].variants
    answer(platform.model.id, champion, 5, 1.0)
    moment = datetime.now(UTC)
    answer(platform.model.id, champion, 3, 7.0)
    assert {role: (seen.requests, seen.latency_ms) for role, seen in evidence(platform.model.id, moment).items()} == {
        "champion": (3, 7.0)
    }
