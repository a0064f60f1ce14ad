"""The champion and the candidate are compared on the same rows, wherever they are compared.

The gate does so on the candidate's holdout, a canary's step on its requests (`test_comparison`). The one stated case of
other rows is a champion that cannot predict the candidate's (`Unjudged`), and its verdict says so.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_assets import Gate
from mlops_assets.gate import CHAMPION, PREDICTION, Unjudged, judge
from mlops_assets.metrics import METRICS

if TYPE_CHECKING:
    from conftest import Platform

AUC = METRICS["roc_auc"]
GATE = Gate("roc_auc", at_least=0.1, beats_champion_by=-1.0)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(20, 200))
def test_a_gate_measures_both_on_every_row_that_it_is_given(seed: int, count: int) -> None:
    """In any order, and on none that it is not given."""
    generator = np.random.default_rng(seed)
    truth = np.r_[0.0, 1.0, generator.integers(0, 2, count - 2)]
    rows = pl.DataFrame({"late": truth, PREDICTION: generator.random(count), CHAMPION: generator.random(count)})
    judged = {claim.name: claim for claim in judge(GATE, "late", rows.sample(fraction=1, shuffle=True, seed=seed), 1.0)}
    numbers = judged["beats_champion"].numbers
    assert numbers["candidate"] == pytest.approx(AUC.compute(truth, rows[PREDICTION].to_numpy()))
    assert numbers["champion"] == pytest.approx(AUC.compute(truth, rows[CHAMPION].to_numpy()))
    assert f"on the same {count} rows" in judged["beats_champion"].reason


def test_the_one_case_of_other_rows_says_so() -> None:
    rows = pl.DataFrame({"late": [0.0, 1.0, 1.0], PREDICTION: [0.1, 0.9, 0.4]})
    verdict = next(
        claim
        for claim in judge(GATE, "late", rows, 1.0, Unjudged("1", "it reads what is no more", 0.7))
        if claim.name == "beats_champion"
    )
    assert "on its own holdout, which is of other rows" in verdict.reason


def test_a_candidates_verdict_is_of_both_models_on_its_holdout(platform: Platform) -> None:
    """Computed anew from the two registered bundles and the rows of the training set, the numbers are the same."""
    from mlops_assets.training import evaluate, split, training_arguments

    ran = platform.run("candidate", partition="2013-07-01")
    assert ran.ok, ran.trouble
    told = {name: value.value for name, value in ran.checks["beats_champion"].metadata.items()}
    path = platform.resources["lake"].path("flights/late_arrival/training_set", "2013-07-01")
    cutoff = datetime.fromisoformat("2013-07-01T00:00:00+00:00")
    arguments = training_arguments(platform.model, cutoff, path, platform.home)
    holdout = split(pl.read_parquet(str(path)), arguments).holdout
    truth = holdout["late"].cast(pl.Float64).to_numpy()
    for name, version in (("champion", "1"), ("candidate", "2")):
        bundle = platform.promotion.mlflow.download(platform.model.registered_name, version)
        assert told[name] == pytest.approx(AUC.compute(truth, evaluate(bundle, holdout).to_numpy()), abs=1e-9), name
