"""`mlops history` answers why something was, or was not, done: in brief, each decision, a month, for a program."""

from __future__ import annotations

import json
from datetime import date
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from resources.decisions import DecisionStore

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "flights/late_arrival"


@pytest.fixture(autouse=True)
def summer(home: Path) -> None:
    """Healthy days in July, a broken pipeline in August, the retraining in September."""
    days = [(7, 1, "no"), (7, 2, "no"), (8, 1, "broken pipeline"), (8, 2, "no"), (8, 3, "no"), (9, 1, "retrain")]
    for month, number, outcome in days:
        day = date(2013, month, number)
        reasons = [f"drift of {day}", "weather_hourly: no usable row"] if outcome == "broken pipeline" else [str(day)]
        DecisionStore().record(MODEL, "retrain", outcome, reasons, day=day, by="sensors.retraining", evidence={"n": 1})


def history(*words: str) -> str:
    from mlops_assets.cli import app

    ran = CliRunner().invoke(app, ["history", MODEL, *words])
    assert ran.exit_code == 0, ran.output
    return ran.output


def lines(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if "sensors.retraining" in line]


def test_in_brief_what_nothing_came_of_is_a_line() -> None:
    first, broken, between, asked = lines(history())
    assert "retrain, 2013-07-01 to 2013-07-02" in first and "2 answers" in first
    assert "retrain [2013-08-01]" in broken and "weather_hourly: no usable row" in broken
    assert "2013-08-02 to 2013-08-03" in between and "retrain [2013-09-01]" in asked


def test_each_decision_of_a_month() -> None:
    """Why was it not retrained in August?"""
    august = lines(history("--decisions", "--since", "2013-08-01", "--until", "2013-08-31"))
    assert len(august) == 3 and "broken pipeline" in august[0]


def test_a_program_gets_the_evidence() -> None:
    told = json.loads(history("--json", "--since", "2013-09-01"))
    assert [(event["what"], event["to"], event["day"], event["evidence"]) for event in told] == [
        ("retrain", "retrain", "2013-09-01", {"n": 1})
    ]


def test_a_day_that_is_none_is_refused() -> None:
    from mlops_assets.cli import app

    ran = CliRunner().invoke(app, ["history", MODEL, "--since", "2013-99-01"])
    assert ran.exit_code == 2 and "2013-99-01" in ran.output
