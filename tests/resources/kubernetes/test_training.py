"""A candidate trained in a pod is the one trained here: the link, the store and the tracking notice nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlops_assets import Resources
from resources.kubernetes.cluster import SETTINGS
from resources.kubernetes.owned import owner
from resources.kubernetes.owned import platform as platform_of
from tests.conftest import FIRST_CUTOFF, Platform
from tests.resources.kubernetes.api_server import configured, dies, serving, works_until


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def curves(platform: Platform, run: Any) -> dict[str, list[float]]:
    """What the training said while it ran, by metric."""
    mlflow = platform.promotion.mlflow
    told = {name for name in run.data.metrics if name.startswith("trial ")}
    return {name: [point.value for point in mlflow.metric_history(run.info.run_id, name)] for name in sorted(told)}


def test_a_model_trained_in_a_pod_is_the_same_byte_for_byte(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files, its trials, and the score of each round in MLflow; its log lines are in the run.

    Also when its first machine is taken away in the middle.
    """
    with serving() as (api, address):
        monkeypatch.setenv(SETTINGS, str(configured(tmp_path, address, platform.home)))
        api.lives.append(works_until(dies(conditions=[{"type": "DisruptionTarget", "status": "True"}])))
        there = platform.declared(compute="kubernetes", resources=Resources(cpus=2, memory_gb=2, retries=1))
        ran = there.train(FIRST_CUTOFF)
        assert ran.ok, ran.trouble
    _, pod = api.created
    wanted = owner(ran.result.run_id, platform_of(platform.instance), None)
    assert wanted.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"]["mlops/asset"] == "flights.late_arrival.candidate"
    mlflow, name = platform.promotion.mlflow, platform.model.registered_name
    here, elsewhere = (mlflow.download(name, version) / "model" for version in ("1", "2"))
    assert files(here) == files(elsewhere)
    newest, first = platform.mlflow_runs("FINISHED")
    assert newest.data.tags["compute"] == "kubernetes"
    assert curves(platform, newest) == curves(platform, first) != {}
    scores = [[trial.data.metrics for trial in platform.trials(run.info.run_id)] for run in (newest, first)]
    assert len(scores[0]) == len(scores[1]) == 2
    logged = [entry.user_message for entry in platform.instance.all_logs(ran.result.run_id)]
    assert any("on the holdout" in line for line in logged)
    assert any("was taken off its node" in line for line in logged)
