"""A candidate is kept whatever the verdict; refused or broken off, it moves nothing that is published."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl
import psutil
import pytest

from mlops_assets import Gate, ModelPipeline, TimeSplit
from mlops_assets.links.training_set import cold_start_columns
from mlops_assets.trainers import XGBoostClassifier, trainer_named
from resources.compute import ComputeResource
from resources.hardware import this_machine
from resources.mlflow import MlflowResource

if TYPE_CHECKING:
    from conftest import Platform

pytestmark = pytest.mark.slow

CUTOFF, TRAINING_SET = "2013-07-01", "flights/late_arrival/training_set"
DAY = timedelta(days=1)


def gate(**changes: Any) -> Gate:
    return Gate(**{"metric": "roc_auc", "at_least": 0.5, "slice_tolerance": 0.9, **changes})


REFUSED = {
    "clears_floor": (gate(at_least=0.99), "wanted at least 0.99"),
    "beats_champion": (gate(beats_champion_by=0.4), "on the same"),
    "worst_slice": (gate(slices=["carrier"], slice_tolerance=0.0, slice_min_rows=100), "on the whole: worse by"),
    "latency": (gate(latency_ms=0.0001), "allowed 0.0001 ms"),
}


@pytest.mark.parametrize("check", REFUSED)
def test_a_refused_candidate_is_kept_visible_and_not_promoted(check: str, platform: Platform) -> None:
    """Registered and tagged with the reason; champion, Bento and endpoint are not run, and nothing published moves."""
    before = platform.published
    declared, words = REFUSED[check]
    ran = platform.declared(gate=declared).train(CUTOFF)
    assert not ran.ok and ran.failed == {check} and words in ran.checks[check].description
    assert set(ran.facts) == {"training_set", "candidate"} and "**refused**" in ran.facts["candidate"]["gate"]
    assert {**platform.published, "versions": ["1"]} == before
    version = platform.promotion.mlflow.version(platform.model.registered_name, "2")
    assert version.tags["gate"] == "refused" and version.tags["refused_because"].startswith(f"{check}: ")
    (run, _) = platform.mlflow_runs("FINISHED")
    assert run.info.run_id == version.run_id, "the training itself went well"


def test_the_rounds_of_each_trial_are_in_mlflow(platform: Platform) -> None:
    """What each round reached on the validation rows, by its number; nothing waits in the spool."""
    (run,) = platform.mlflow_runs("FINISHED")
    for trial in (0, 1):
        points = platform.promotion.mlflow.metric_history(run.info.run_id, f"trial {trial}/validation")
        assert len(points) > 3 and [point.step for point in points] == list(range(len(points)))
        assert points[-1].value < points[0].value
    assert list((platform.home / "mlflow" / "spool").glob("*")) == []


def test_what_a_training_took_of_the_machine_is_told_everywhere(platform: Platform) -> None:
    """In its MLflow run, on its version, in its manifest: what it computed on, why on nothing better, what it took."""
    mlflow, cpu = platform.resources["mlflow"], this_machine().devices["cpu"]
    version = mlflow.version(platform.model.registered_name, "1")
    run = mlflow.client().get_run(version.run_id).data
    assert run.metrics["hardware/peak_memory_gb"] > 0.05
    assert 0 < run.metrics["hardware/seconds"] < 600
    assert run.metrics["hardware/cpu_percent"] > 0 and run.metrics["hardware/rows_per_second"] > 0
    said = {"accelerator": "cpu", "device": cpu.name, "trainer": "XGBoostClassifier", "compute": "local"}
    assert said.items() <= run.tags.items() and {"fallback", "thermal", "hardware"} <= set(run.tags)
    assert (version.tags["accelerator"], version.tags["accelerators"]) == ("cpu", "cuda, cpu")
    manifest = json.loads((mlflow.download(platform.model.registered_name, "1") / "manifest.json").read_text())
    assert manifest["device"]["name"] == cpu.name and manifest["memory_gb"] == this_machine().memory_gb


def test_a_training_that_failed_tells_what_it_took(platform: Platform) -> None:
    """What was measured until then is in its run: whoever looks for the cause starts there."""
    ran = platform.declared(trainer=XGBoostClassifier(n_estimators=5, tree_methud="hist")).train(CUTOFF)
    assert not ran.ok
    (run,) = platform.mlflow_runs("FAILED")
    assert run.data.metrics["hardware/peak_memory_gb"] > 0.05
    assert run.data.tags["device"] == this_machine().chip and run.data.tags["accelerator"] == "cpu"


def test_a_training_in_a_process_of_its_own_gives_the_same_model(platform: Platform) -> None:
    """Byte for byte, and what it logged is in the run: only the place of the work was another.

    What it took of the machine is that process's own: it holds less than this one, which has MLflow and Dagster too.
    """
    platform.resources["compute"] = ComputeResource(kind="subprocess")
    ran = platform.train(CUTOFF)
    assert ran.ok, ran.trouble
    mlflow = platform.resources["mlflow"]
    bundles = [mlflow.download(platform.model.registered_name, version) for version in ("1", "2")]
    here, elsewhere = ((bundle / "model" / "model.ubj").read_bytes() for bundle in bundles)
    assert here == elsewhere
    assert ran.facts["candidate"]["device"] == f"cpu: {this_machine().chip}"
    mine, its = psutil.Process().memory_info().rss / 2**30, ran.facts["candidate"]["hardware/peak_memory_gb"]
    assert 0.05 < its < mine


@pytest.mark.skipif("mlx" in this_machine().devices, reason="this machine has MLX's GPU")
def test_a_machine_without_the_required_accelerator_is_refused_by_name(platform: Platform) -> None:
    """Nothing is searched or fitted; the error says what is missing, why, and what there is."""
    net = trainer_named("NetClassifier", hidden=[4], epochs=1)
    ran = platform.declared(trainer=net, accelerator="mlx").run("candidate", partition=CUTOFF)
    assert not ran.ok and "Accelerator 'mlx' is required, and this machine has none: this is " in ran.trouble
    assert f"Found: cpu: {this_machine().chip}" in ran.trouble
    (run,) = platform.mlflow_runs("FAILED")
    assert platform.trials(run.info.run_id) == [] and "device" not in run.data.tags


def test_a_refused_candidate_is_not_promoted_later(platform: Platform) -> None:
    """Neither by the next run of the champion, nor by somebody who asks for it."""
    from mlops_assets.promotion import NotPromotableError

    platform.declared(gate=gate(at_least=0.99)).train(CUTOFF)
    before = platform.published
    assert platform.run("champion", "bento", "endpoint").ok
    with pytest.raises(NotPromotableError, match="did not pass its gate"):
        platform.promotion.promote(platform.model, "2", by="ann", why="I like it")
    assert platform.published == before


def test_training_again_makes_a_new_version_of_the_same_model(platform: Platform) -> None:
    """Equal rows and seed: another MLflow run and version, the same predictions; equal is not worse, so it passes."""
    ran = platform.declared(gate=gate(beats_champion_by=0.0)).run("candidate", partition=CUTOFF)
    assert ran.ok and platform.published["versions"] == ["2", "1"]
    old, new = (platform.promotion.mlflow.download(platform.model.registered_name, name) for name in ("1", "2"))
    assert json.loads((old / "golden.json").read_text()) == json.loads((new / "golden.json").read_text())
    assert ran.checks["beats_champion"].metadata["gain"].value == 0


# -- broken off in the middle


def break_(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """The MLflow resource fails at one of its verbs."""

    def broken(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(MlflowResource, step, broken)


@pytest.mark.parametrize("step", ["log", "log_directory", "register"])
def test_a_training_that_breaks_off_leaves_no_version(
    step: str, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its MLflow run says FAILED, what is published stands; the next run uses its work, says so, and leaves nothing."""
    before = platform.published
    with monkeypatch.context() as patched:
        break_(patched, step, ConnectionError(f"MLflow went away at {step}"))
        ran = platform.run("candidate", "champion", partition=CUTOFF)
    assert not ran.ok and f"MLflow went away at {step}" in ran.trouble
    assert platform.published == before and len(platform.mlflow_runs("FAILED")) == 1
    (broken,) = platform.mlflow_runs("FAILED")
    (work,) = [path for path in (platform.home / "work" / "training").iterdir() if path.is_dir()]
    assert (work / "ended.json").is_file(), "the training itself need not be done again"
    again = platform.run("candidate", "champion", partition=CUTOFF)
    assert again.ok and again.facts["candidate"]["version"] == "2" and platform.published["alias"] == "2"
    new = platform.promotion.mlflow.client().get_run(again.facts["candidate"]["mlflow_run_id"])
    old = platform.promotion.mlflow.client().get_run(broken.info.run_id)
    assert new.data.tags["continues"] == old.info.run_id and old.data.tags["continued_by"] == new.info.run_id
    assert not list((platform.home / "work" / "training").iterdir())


def test_a_training_that_is_interrupted_says_so(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminated run is KILLED in MLflow, neither FAILED nor for ever RUNNING."""
    break_(monkeypatch, "register", dg.DagsterExecutionInterruptedError())
    assert not platform.run("candidate", partition=CUTOFF).ok
    assert len(platform.mlflow_runs("KILLED")) == 1 and not platform.mlflow_runs("RUNNING")


def test_a_search_that_breaks_off_shows_how_far_it_came(platform: Platform) -> None:
    """The trial that failed is a child run, with its parameters and its status."""
    ran = platform.declared(trainer=XGBoostClassifier(n_estimators=5, tree_methud="hist")).train(CUTOFF)
    assert not ran.ok and "tree_methud" in ran.trouble
    (run,) = platform.mlflow_runs("FAILED")
    (trial,) = platform.trials(run.info.run_id)
    assert trial.info.status == "FAILED" and "max_depth" in trial.data.params


# -- bad rows


def spoilt(platform: Platform, **columns: pl.Expr) -> None:
    """The training set with some columns replaced, as if a fault had got past every check."""
    lake = platform.resources["lake"]
    lake.write(lake.scan(TRAINING_SET, [CUTOFF]).with_columns(**columns), TRAINING_SET, CUTOFF)


@pytest.mark.parametrize(
    ("columns", "split", "words"),
    [
        ({"temp": pl.lit(float("inf"))}, TimeSplit(5 * DAY, 3 * DAY), "'temp': holds an infinite value"),
        (
            {"late": pl.lit(True)},
            TimeSplit(5 * DAY, 3 * DAY),
            "has the classes [1.0] in label 'late', not both 0 and 1",
        ),
        (
            {"late": pl.lit(None, pl.Boolean)},
            TimeSplit(5 * DAY, 3 * DAY),
            "labels 'late' that are null, NaN or infinite",
        ),
        ({"temp": pl.lit("mild")}, TimeSplit(5 * DAY, 3 * DAY), "'temp': has type String (allowed: Float64)"),
        ({}, TimeSplit(18 * DAY, 9 * DAY), "the train part (0 rows before 2013-07-01T00:00:00+00:00) is empty"),
    ],
    ids=["infinite", "one class", "no labels", "text for a number", "nothing to train on"],
)
def test_unusable_rows_end_the_training_by_name(
    columns: dict[str, pl.Expr], split: TimeSplit, words: str, platform: Platform
) -> None:
    """The error says which column or part, the MLflow run is FAILED, nothing is registered or moved."""
    before = platform.published
    spoilt(platform, **columns)
    ran = platform.declared(split=split).run("candidate", partition=CUTOFF)
    assert not ran.ok and words in ran.trouble
    assert platform.published == before and len(platform.mlflow_runs("FAILED")) == 1


def test_a_missing_training_set_is_named(platform: Platform) -> None:
    """A candidate of a cutoff that has none says which one it looked for; no champion changes."""
    before = platform.published
    ran = platform.run("candidate", partition="2013-06-24")
    assert not ran.ok and "2013-06-24" in ran.trouble and TRAINING_SET in ran.trouble
    assert "NotMaterializedError" in ran.trouble and platform.published == before


def test_a_nan_is_a_missing_value(platform: Platform) -> None:
    """As a null is: the model of rows with NaN is the model of rows with null in their place."""
    golden = []
    for missing in (None, float("nan")):
        half = pl.when(pl.col("flight_id").hash() % 2 == 0).then("temp").otherwise(pl.lit(missing, pl.Float64))
        spoilt(platform, temp=half)
        assert platform.run("candidate", partition=CUTOFF).ok
        newest = platform.published["versions"][0]
        bundle = platform.promotion.mlflow.download(platform.model.registered_name, newest)
        golden.append(json.loads((bundle / "golden.json").read_text()))
    assert golden[0] == golden[1]


def test_a_cold_start_that_does_not_help_is_a_warning(platform: Platform) -> None:
    """Stand-ins that say no more than nulls fail the check; the candidate is registered, passed and promoted."""
    cold = [name for name in cold_start_columns(platform.model) if name.endswith("__cold_start")]
    spoilt(platform, **{name: pl.lit(None) for name in cold})
    ran = platform.run("candidate", "champion", partition=CUTOFF)
    assert ran.ok and ran.failed == {"cold_start_helps"} and platform.published["alias"] == "2"
    assert "better by +0.0000, wanted more than +0" in ran.checks["cold_start_helps"].description
    assert "| cold_start_helps | warned |" in ran.facts["candidate"]["gate"]
    version = platform.promotion.mlflow.version(platform.model.registered_name, "2")
    assert version.tags["gate"] == "passed" and "refused_because" not in version.tags


def test_a_model_without_cold_starts_has_no_such_check(platform: Platform) -> None:
    """It is neither declared nor run."""
    declared = platform.declared(**without(platform.model, "aircraft_use"), gate=gate(beats_champion_by=None))
    ran = declared.run("training_set", "candidate", partition=CUTOFF)
    assert ran.ok and set(ran.checks) & {"cold_start_helps", "clears_floor"} == {"clears_floor"}


# -- a champion that cannot read the new rows


def without(model: ModelPipeline, view: str) -> dict[str, Any]:
    return {"features": [item for item in model.selections if item.view.name != view]}


def test_a_feature_may_be_dropped_although_the_champion_reads_it(platform: Platform) -> None:
    """The champion cannot predict the new rows: its own holdout stands in, the verdict says so, and life goes on."""
    declared = platform.declared(**without(platform.model, "aircraft_use"), gate=gate(beats_champion_by=-0.2))
    ran = declared.run("training_set", "candidate", "champion", partition=CUTOFF)
    assert ran.ok, ran.trouble
    said = ran.checks["beats_champion"].description
    assert "the champion (version 1) cannot predict these rows: Input column 'aircraft_age': is missing" in said
    assert "on its own holdout, which is of other rows" in said and platform.published["alias"] == "2"


def test_a_worse_model_of_fewer_features_is_still_refused(platform: Platform) -> None:
    """Dropping a feature is no way around the gate."""
    declared = platform.declared(**without(platform.model, "aircraft_use"), gate=gate(beats_champion_by=0.4))
    ran = declared.train(CUTOFF)
    assert not ran.ok and ran.failed == {"beats_champion"} and platform.published["alias"] == "1"


def test_a_model_of_another_label_is_not_measured_against_the_old_one(platform: Platform) -> None:
    """The refusal says what the champion predicts and how to go on; without the comparison it passes."""
    from mlops_assets.trainers import XGBoostRegressor

    minutes = {"label": "arrival_delay", "trainer": XGBoostRegressor(n_estimators=10)}
    ran = platform.declared(**minutes, gate=Gate("mae", at_most=90, slice_tolerance=9)).train(CUTOFF)
    said = ran.checks["beats_champion"].description
    assert ran.failed == {"beats_champion"} and "it is a classification of 'late', not of 'arrival_delay'" in said
    assert "beats_champion_by to None" in said
    waived = Gate("mae", at_most=90, slice_tolerance=9, beats_champion_by=None)
    assert platform.declared(**minutes, gate=waived).run("candidate", partition=CUTOFF).ok
