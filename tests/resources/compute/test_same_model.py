"""One word says where a model is trained, and no more than that: its files, its metrics and its trials are the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlops_assets.record import file_hashes
from tests.conftest import FIRST_CUTOFF, Platform

pytestmark = pytest.mark.slow

OF_THE_MACHINE = ("seconds", "hardware/", "search_")  # what a training took is no part of what came of it


def trained(platform: Platform, kind: str) -> dict[str, Any]:
    """A candidate by that kind of compute: the files of its model, and what MLflow was told."""
    platform = platform.declared(compute=kind)
    before = {run.info.run_id for run in platform.mlflow_runs()}
    ran = platform.run("candidate", partition=FIRST_CUTOFF)
    assert ran.ok, ran.trouble
    (run,) = (run for run in platform.mlflow_runs() if run.info.run_id not in before)
    bundle = Path(platform.promotion.mlflow.download(platform.model.registered_name, ran.facts["candidate"]["version"]))
    made = file_hashes(bundle)
    return {
        "files": {name: content for name, content in made.items() if name.startswith("model/")},
        "golden": json.loads((bundle / "golden.json").read_text()),
        "metrics": lasting(run.data.metrics),
        "params": run.data.params,
        "trials": sorted(
            (trial.data.params | {name: repr(value) for name, value in lasting(trial.data.metrics).items()}).items()
            for trial in platform.trials(run.info.run_id)
        ),
        "status": run.info.status,
        "verdicts": {name: check.passed for name, check in ran.checks.items() if name != "latency"},
    }


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not any(word in name for word in OF_THE_MACHINE)}


@pytest.fixture(scope="module")
def here(module_platform: Platform) -> dict[str, Any]:
    return trained(module_platform, "local")


@pytest.mark.parametrize("kind", ["subprocess", "ray", "spark"])
def test_the_same_seed_gives_the_same_model_everywhere(
    module_platform: Platform, here: dict[str, Any], kind: str, request: pytest.FixtureRequest
) -> None:
    """Byte for byte; and MLflow holds the same metrics, parameters and trials of it."""
    if kind == "ray":
        request.getfixturevalue("own_ray")
    assert here["files"]
    assert len(here["trials"]) == 2
    assert trained(module_platform, kind) == here
