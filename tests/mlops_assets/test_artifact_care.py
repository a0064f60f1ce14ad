"""Damage is told before the file is needed, once while it lasts; what nobody refers to is deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_assets.artifact_care import artifacts_job
from resources.alerts import AlertResource, outbox

if TYPE_CHECKING:
    from conftest import Platform


def care(platform: Platform) -> dict[str, int]:
    promotion = platform.promotion
    stores = {"mlflow": promotion.mlflow, "bentos": promotion.bentos, "alerts": AlertResource()}
    ran = artifacts_job.execute_in_process(resources=stores, instance=platform.instance)
    (output,) = [event for event in ran.all_events if event.is_successful_output]
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_damage_is_told_once_until_it_is_mended(platform: Platform) -> None:
    """A whole platform is silent; a changed file is named with its version; mended, the episode is over."""
    assert care(platform)["damaged"] == 0 and outbox.last(9) == []
    plan = platform.promotion.mlflow.download(platform.model.registered_name, "1") / "plan.json"
    content = plan.read_bytes()
    plan.unlink()
    plan.write_bytes(b"{}")
    assert care(platform)["damaged"] == care(platform)["damaged"] == 1
    (sent,) = outbox.last(9)
    assert "flights.late_arrival version 1" in sent.message.text and "plan.json was changed" in sent.message.text
    plan.write_bytes(content)
    assert care(platform)["damaged"] == 0 and outbox.open_keys() == []
