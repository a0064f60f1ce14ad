"""`mlops alerts` shows what was told, what arrived, and what lasts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlops_assets.cli import app
from resources.alerts import Alert, AlertResource


def said(*words: str) -> str:
    ran = CliRunner().invoke(app, ["alerts", *words])
    assert ran.exit_code == 0, ran.output
    return str(ran.output)


def test_a_person_sees_each_alert_with_its_deliveries_and_what_lasts(home: Path) -> None:
    """Where only the log was told, it says so."""
    AlertResource().send(Alert("late_arrival drifts", "temp moved", "warning", key="drift"))
    AlertResource().send(Alert("late_arrival drifts", "temp moved", "warning", key="drift"))
    shown = said()
    assert "late_arrival drifts" in shown and "temp moved" in shown and "the log alone" in shown
    (lasting,) = json.loads(said("--json"))["lasting"]
    assert (lasting["key"], lasting["times"]) == ("drift", 2)


def test_an_episode_is_ended_by_its_key(home: Path) -> None:
    """One that nobody knows is an error that says where the keys are."""
    AlertResource().send(Alert("x", "y", key="drift"))
    assert "Ended: drift" in said("--resolve", "drift")
    assert json.loads(said("--json"))["lasting"] == []
    ran = CliRunner().invoke(app, ["alerts", "--resolve", "drift"])
    assert ran.exit_code == 2 and "mlops alerts" in ran.output


def test_a_test_says_what_each_channel_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The secret in the address is not shown; without a channel the variables are named."""
    assert "MLOPS_ALERT_SLACK" in CliRunner().invoke(app, ["alerts", "--test"]).output
    monkeypatch.setenv("MLOPS_ALERT_WEBHOOK", "file:///hunter2")
    ran = CliRunner().invoke(app, ["alerts", "--test", "--json"])
    assert ran.exit_code == 1
    shown = ran.stdout
    (message,) = json.loads(shown)["messages"]
    assert message["deliveries"][0]["state"] == "given up" and "hunter2" not in shown
