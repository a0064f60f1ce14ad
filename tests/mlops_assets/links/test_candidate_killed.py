"""A training whose process is killed is taken up by the next one, to the very model that it would have been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlops_assets import Checkpoint, Gate, IntRange, Search
from mlops_assets.checkpoints import digest
from mlops_assets.record import RECORD
from mlops_assets.trainers import XGBoostClassifier
from mlops_assets.workplace import WorkplaceTakenError, clean, workplace

if TYPE_CHECKING:
    import dagster as dg
    from conftest import Platform

pytestmark = pytest.mark.slow

CUTOFF = "2013-07-01"
TESTS = Path(__file__).parents[2]
DECLARED = {
    "trainer": XGBoostClassifier(n_estimators=40, subsample=0.8, colsample_bytree=0.8, early_stopping_rounds=100),
    "search": Search(trials=3, space={"max_depth": IntRange(2, 5)}),
    "gate": Gate("roc_auc", at_least=0.5, slice_tolerance=0.9, beats_champion_by=None),
    "checkpoint": Checkpoint(every=None, rounds=5),
}
# What is done to the process of the training, so that it kills itself at a moment.
MOMENTS = {
    "in the second trial": """
from mlops_assets.checkpoints import Progress
Progress.reached = after(6, Progress.reached)
""",
    "in the final fit": """
from mlops_assets.checkpoints import Progress
Progress.reached = after(14, Progress.reached)
""",
    "before the bundle is logged": """
from resources.mlflow import MlflowResource
MlflowResource.log_directory = die
""",
    "after the version is registered": """
from resources.mlflow import MlflowResource
MlflowResource.register = after(1, MlflowResource.register)
""",
}


def victim(platform: Platform, moment: str) -> subprocess.CompletedProcess[str]:
    """The run of a candidate whose process dies by SIGKILL at a moment."""
    code = f"""
import os, signal
import dagster as dg
from conftest import Platform, small_model
from resources.environment import prepare_home

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(times, function):
    calls = iter(range(10_000))
    def counted(*args, **kwargs):
        told = function(*args, **kwargs)
        if next(calls) + 1 == times:
            die()
        return told
    return counted

prepare_home()
{MOMENTS[moment]}
import test_candidate_killed
with dg.DagsterInstance.get() as instance:
    Platform(small_model(), instance).declared(**test_candidate_killed.DECLARED).run("candidate", partition={CUTOFF!r})
"""
    path = os.pathsep.join([str(TESTS), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    died = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    monitored(platform.instance)
    return died


def monitored(instance: dg.DagsterInstance) -> None:
    """What Dagster's run monitoring does of a run whose process is gone."""
    import dagster as dg

    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        instance.report_run_failed(run)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def bundle_of(platform: Platform, version: str) -> Path:
    return platform.promotion.mlflow.download(platform.model.registered_name, version)


@pytest.fixture(scope="module")
def whole(module_platform: Platform) -> dict[str, Any]:
    """The record of the same training, never interrupted."""
    platform = module_platform.declared(**DECLARED)
    ran = platform.run("candidate", partition=CUTOFF)
    assert ran.ok, ran.trouble
    record: dict[str, Any] = json.loads((bundle_of(platform, ran.facts["candidate"]["version"]) / RECORD).read_text())
    return record


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_training_goes_on_to_the_same_model(moment: str, whole: dict[str, Any], platform: Platform) -> None:
    """Equal files, trials and metrics; one version, one MLflow run, which finishes; nothing is left lying."""
    died = victim(platform, moment)
    assert died.returncode == -signal.SIGKILL, died.stderr[-3000:]
    (broken,) = platform.mlflow_runs("RUNNING")
    ran = platform.declared(**DECLARED).run("candidate", partition=CUTOFF)
    assert ran.ok, ran.trouble
    record = json.loads((bundle_of(platform, "2") / RECORD).read_text())
    assert {name: record[name] for name in ("files", "trials", "metrics", "made_from")} == {
        name: whole[name] for name in ("files", "trials", "metrics", "made_from")
    }
    assert platform.published["versions"] == ["2", "1"] and ran.facts["candidate"]["version"] == "2"
    assert ran.facts["candidate"]["mlflow_run_id"] == broken.info.run_id and not platform.mlflow_runs("RUNNING")
    numbers = [run.data.tags["trial"] for run in platform.trials(broken.info.run_id) if run.info.status == "FINISHED"]
    assert sorted(numbers) == ["0", "1", "2"]
    assert not list((platform.home / "work" / "training").iterdir())


def test_trials_that_ended_are_not_run_again(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    """After a kill in the second trial only that one and the third are fitted; the second goes on where it was."""
    assert victim(platform, "in the second trial").returncode == -signal.SIGKILL
    with caplog.at_level("INFO", logger="mlops_assets"):
        assert platform.declared(**DECLARED).run("candidate", partition=CUTOFF).ok
    fitted = [line.split(":")[0] for line in caplog.messages if line.startswith("trial ")]
    assert fitted == ["trial 1", "trial 2"]
    assert (
        sum(line.startswith("continuing trial-") and line.endswith("after 20 rounds") for line in caplog.messages) == 1
    )


def test_work_of_another_declaration_is_not_taken_up(platform: Platform) -> None:
    """Another trainer starts over in a place of its own; an hour later the MLflow run of the killed one is KILLED."""
    assert victim(platform, "in the final fit").returncode == -signal.SIGKILL
    (broken,) = platform.mlflow_runs("RUNNING")
    for place in (platform.home / "work" / "training").glob("*/"):
        aged(place, timedelta(minutes=61))
    other = platform.declared(**{**DECLARED, "trainer": XGBoostClassifier(n_estimators=10)})
    ran = other.run("candidate", partition=CUTOFF)
    assert ran.ok and ran.facts["candidate"]["mlflow_run_id"] != broken.info.run_id
    assert [run.info.run_id for run in platform.mlflow_runs("KILLED")] == [broken.info.run_id]


# -- the place alone


def aged(place: Path, age: timedelta) -> None:
    """As if nothing had happened there for so long."""
    then = time.time() - age.total_seconds()
    for path in (*place.rglob("*"), place):
        os.utime(path, (then, then))


def test_two_runs_do_not_share_a_place(home: Path) -> None:
    """The second is told so by name, at once; when the first is done the place is free, and gone."""
    with workplace("a-model") as work:
        (work.path / "half.bin").write_bytes(b"half")
        with pytest.raises(WorkplaceTakenError, match="a-model"), workplace("a-model"):
            pass
    with workplace("a-model") as work:
        assert not list(work.path.iterdir())
    assert not list((home / "work" / "training").iterdir())


def test_a_place_stays_when_its_work_breaks_off(home: Path) -> None:
    """What lies there is found by the next run, with the MLflow run that it was done in."""
    with pytest.raises(ConnectionError), workplace("a-model") as work:
        work.note_run("run-1")
        raise ConnectionError
    with workplace("a-model") as work:
        assert work.run_id == "run-1"


def test_old_work_is_cleaned_and_nobody_is_said_to_do_it(home: Path) -> None:
    """A week after its last sign of life; younger work stays, that being done is not touched, runs end once each."""
    for name in ("old", "young", "new", "busy"):
        with pytest.raises(ConnectionError), workplace(name) as work:
            work.note_run(f"run of {name}")
            raise ConnectionError
    aged(home / "work" / "training" / "old", timedelta(days=8))
    aged(home / "work" / "training" / "young", timedelta(hours=2))
    ended: list[str] = []
    with workplace("busy"):
        assert clean(lambda run_id: ended.append(run_id) or True) == ["old"]
    assert ended == ["run of old", "run of young"]
    assert sorted(path.name for path in (home / "work" / "training").iterdir()) == [
        *("new", "new.lock", "young", "young.lock")
    ]


def test_the_name_of_a_place_says_what_it_is_made_from() -> None:
    """Equal words in any order are equal; another word is another place."""
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
