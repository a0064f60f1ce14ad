"""Retraining of a declared model: what is read about it, and a report that decides when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
import pytest

from mlops_assets.catalog import gather
from mlops_assets.retraining import report_seen, retraining
from resources.decisions import DecisionStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

catalog = gather()
MODEL = catalog.model("flights/late_arrival")


@pytest.fixture
def context(home: Path) -> Iterator[dg.AssetExecutionContext]:
    with dg.DagsterInstance.ephemeral() as instance, dg.build_asset_context(instance=instance) as context:
        yield context


@pytest.mark.parametrize("model", catalog.models.values(), ids=lambda model: model.id)
def test_every_check_that_is_read_is_one_of_the_models(model) -> None:
    """By name and asset, so that no report is waited for that nobody makes."""
    from mlops_assets.definitions import defs

    watched, graph = retraining(model), defs.resolve_asset_graph()
    assert {*watched.checks, watched.healthy} <= set(graph.asset_check_keys)
    assert {watched.candidate, *watched.training} <= set(graph.get_all_asset_keys())
    assert defs.resolve_sensor_def(watched.sensor).job_name == watched.job


def test_a_report_that_ends_is_decided_about(context: dg.AssetExecutionContext) -> None:
    report_seen(MODEL, context)
    (line,) = DecisionStore().history(MODEL.id)
    assert (line.outcome, line.reasons) == ("no", ("no report yet",))


def test_a_decision_that_fails_never_fails_its_report(context: dg.AssetExecutionContext, home: Path) -> None:
    """The database cannot be opened: it is logged, and left to the sensor."""
    home.mkdir(exist_ok=True)
    (home / "platform.db").mkdir()
    report_seen(MODEL, context)
    with pytest.raises(Exception, match="unable to open database file"):
        DecisionStore().history(MODEL.id)
