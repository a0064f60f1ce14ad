"""`mlops train`: a day that is no cutoff is refused by name; what a run came to is told, and Dagster has the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
import pytest
from typer.testing import CliRunner

from mlops_assets.cli import app
from mlops_assets.training_cli import UnknownCutoffError

if TYPE_CHECKING:
    from conftest import Platform

MODEL = "flights/late_arrival"


@pytest.mark.parametrize(
    ("cutoff", "words"),
    [("2013-07-02", "Nearest are 2013-06-24, 2013-07-01, 2013-07-08"), ("tomorrow", "Write it as YYYY-MM-DD")],
)
def test_a_day_that_is_no_cutoff_is_refused(cutoff: str, words: str, home: object) -> None:
    """The error names the nearest cutoffs, or how one is written; nothing is run."""
    ran = CliRunner().invoke(app, ["train", MODEL, "--cutoff", cutoff])
    assert isinstance(ran.exception, UnknownCutoffError) and words in str(ran.exception)


def test_an_unknown_model_says_which_exist(home: object) -> None:
    """As every command does."""
    ran = CliRunner().invoke(app, ["train", "flights/nothing", "--cutoff", "2013-07-01"])
    assert ran.exception is not None and "flights/late_arrival" in str(ran.exception)


def test_a_run_that_fails_says_why_and_is_recorded(platform: Platform) -> None:
    """Three weeks are too few for the declared split: exit status 1, the reason, and a failed run in Dagster."""
    ran = CliRunner().invoke(app, ["train", MODEL, "--cutoff", "2013-07-01"])
    assert ran.exit_code == 1 and "the train part (0 rows before 2013-07-01" in ran.output
    (run,) = platform.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert f"Dagster run {run.run_id} failed: training_set" in ran.output
    assert run.job_name == "flights__late_arrival__train"
