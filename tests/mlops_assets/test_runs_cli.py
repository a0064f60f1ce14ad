"""`mlops runs` over a real store: what it finds, compares and draws from, and what it says to a wrong question."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mlops_assets.cli import app
from resources.mlflow import MlflowResource
from resources.tracking.archive import NoDatabaseError
from resources.tracking.runs import UnknownExperimentError
from resources.tracking.search import SearchSyntaxError

MODEL, NAME = "flights/late_arrival", "flights.late_arrival"
XEON = {"accelerator": "cpu", "device": "Xeon", "trainer": "XGBoostClassifier"}
TOOK = {"hardware/rows_per_second": 1000.0, "hardware/peak_memory_gb": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three runs with a course each, one of them with a trial and a version, on two machines."""
    root = tmp_path_factory.mktemp("runs") / "home"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLOPS_HOME", str(root))
        patched.setenv("MLOPS_ENV", "test")
        store = MlflowResource()
        for number, auc in enumerate((0.6, 0.8, 0.7)):
            cpus = 4 * (1 + number // 2)
            said = {"hardware": f"{cpus} CPUs", "cpus": cpus}
            with store.run(MODEL, f"2013-0{number + 1}-01", said | (XEON if cpus == 8 else {})) as run:
                metrics = {"holdout_roc_auc": auc, "seconds_total": 10 * auc} | (TOOK if cpus == 8 else {})
                store.log(run, params={"max_depth": number}, metrics=metrics)
                with store.loop(run) as log:
                    for step in range(5):
                        log(step, loss=1 / (step + 1 + number))
                if number == 1:
                    with store.run(MODEL, "trial 0", parent=run) as trial:
                        store.log(trial, metrics={"holdout_roc_auc": 0.99})
                    store.client().log_text(run, "{}", "bundle/manifest.json")
                    store.register(NAME, run, "bundle", {"gate": "passed", "metric": "0.8"})
        yield root


@pytest.fixture(autouse=True)
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(trained))
    monkeypatch.setenv("MLOPS_ENV", "test")


def runs(*words: str) -> Result:
    result = CliRunner().invoke(app, ["runs", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def told(*words: str) -> Any:
    return json.loads(runs(*words, "--json").stdout)


def test_a_condition_and_an_order(here: None) -> None:
    """The largest first unless it is said otherwise; trials only when asked for; the version that a run became."""
    found = told(MODEL, "--where", "metrics.holdout_roc_auc > 0.65", "--order-by", "metrics.holdout_roc_auc")
    assert [(run["name"], run["version"]) for run in found] == [("2013-02-01", "1"), ("2013-03-01", None)]
    assert [run["name"] for run in told("--order-by", "metrics.holdout_roc_auc ASC", "--limit", "1")] == ["2013-01-01"]
    assert told(MODEL, "--trials", "--order-by", "metrics.holdout_roc_auc")[0]["name"] == "trial 0"
    shown = runs(MODEL, "--where", "params.max_depth = '1'").output
    assert "2013-02-01" in shown and "0.8" in shown and "2013-01-01" not in shown


def test_groups_are_compared(here: None) -> None:
    """By any tag or parameter: how many, what they reached, how long they took."""
    (four, eight) = told(MODEL, "--compare", "cpus", "--order-by", "metrics.holdout_roc_auc")
    assert (four["cpus"], four["runs"], eight["cpus"], eight["runs"]) == ("4", 2, "8", 1)
    assert four["highest holdout_roc_auc"] == 0.8 and four["median seconds_total"] == 7.0
    assert "cpus" in runs(MODEL, "--compare", "cpus").output


def test_techniques_are_compared_by_hardware(here: None) -> None:
    """The best of each device is marked, by the metric of the model's gate; where none is named, of each machine."""
    (four, eight) = told(MODEL, "--compare", "hardware")
    assert (four["device"], four["runs"], four["is_best"]) == ("4 CPUs", 2, True)
    assert (four["metric"], four["best"], four["median"], four["seconds"]) == ("holdout_roc_auc", 0.8, 0.7, 7.0)
    assert (eight["device"], eight["technique"]) == ("cpu: Xeon", "XGBoostClassifier")
    assert (eight["rows_per_second"], eight["peak_memory_gb"], eight["gpu_peak_memory_gb"]) == (1000.0, 0.5, None)
    shown = runs("--compare", "hardware").output
    assert "cpu: Xeon" in shown and "XGBoostClassifier" in shown and "best" in shown


def test_a_history_is_found_live_and_archived(here: None) -> None:
    before = told(MODEL, "--history", "loss")
    assert len(before) == 15 and {point["step"] for point in before} == set(range(5))
    assert MlflowResource().archive(datetime.now(UTC) + timedelta(days=200)).points == 12
    assert told(MODEL, "--history", "loss") == before
    shown = runs(MODEL, "--history", "loss").output
    assert "loss in 3 of 3 runs" in shown and "0.142857" in shown


def test_candidates_are_told_with_those_that_were_archived(here: None) -> None:
    store = MlflowResource()
    for _ in range(2):
        store.client().create_model_version(NAME, "file:///a", tags={"gate": "refused", "metric": "0.1"})
    store.archive(datetime.now(UTC), versions=2)
    assert [(row["version"], row["archived"]) for row in told(MODEL)] == [(1, True), (2, False), (3, False)]
    assert "(archived)" in runs(MODEL).output
    assert [row["version"] for row in told(MODEL, "--limit", "1")] == [3]


def test_a_wrong_question_is_told_what_to_ask(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = CliRunner().invoke(app, ["runs"])
    assert nothing.exit_code == 2 and "--where" in nothing.output
    with pytest.raises(SearchSyntaxError, match=r"Write e\.g\. --where"):
        runs(MODEL, "--where", "roc_auc above 0.7")
    with pytest.raises(UnknownExperimentError, match=f"known: .*{MODEL}"):
        runs("flights/nothing", "--where", "metrics.loss < 1")
    monkeypatch.setattr(MlflowResource, "uri", "http://127.0.0.1:9")
    with pytest.raises(NoDatabaseError, match="MLOPS_MLFLOW_DATABASE"):
        CliRunner().invoke(app, ["migrate"], catch_exceptions=False)


def test_a_migration_is_told(here: None) -> None:
    shown = CliRunner().invoke(app, ["migrate"], catch_exceptions=False).output
    assert "mlflow.db: up to date" in shown and "migration 1, first applied" in shown
