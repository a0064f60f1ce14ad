"""A release answers as it was trained, or is not loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_assets.serving.app import parity
from mlops_assets.serving.bundle import BrokenBundleError, GoldenMismatchError, Release
from mlops_assets.trainers import UnknownTrainerError, UnsafeModelFileError

MakeBundle = Callable[..., Path]


def edit(bundle: Path, part: str, **changes: object) -> None:
    path = bundle / part
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_loaded_release_predicts_its_golden_rows(make_bundle: MakeBundle) -> None:
    """The numbers of training, nulls included."""
    release = Release.load(make_bundle())
    assert release.predict(release.golden.rows) == pytest.approx(release.golden.predictions, abs=1e-5)


def test_the_route_answers_the_golden_rows_as_they_were_trained(make_bundle: MakeBundle) -> None:
    """Through validation, encoding, prediction and JSON nothing changes."""
    assert parity(make_bundle()) < 1e-6


def test_other_numbers_than_in_training_are_refused(make_bundle: MakeBundle) -> None:
    """A difference above the tolerance names its size."""
    with pytest.raises(GoldenMismatchError, match=r"difference of 0\.01"):
        Release.load(make_bundle(golden_shift=0.01))


def test_a_prediction_that_is_not_a_number_is_refused(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN equals nothing: a model that gives it never passes its golden rows."""
    import mlops_assets.trainers

    monkeypatch.setattr(mlops_assets.trainers, "load_predictor", lambda *_: lambda x: x[:, 0] * float("nan"))
    with pytest.raises(GoldenMismatchError, match="difference of inf"):
        Release.load(make_bundle())


@pytest.mark.parametrize("part", ["manifest.json", "plan.json", "schema.json", "golden.json"])
def test_a_missing_or_truncated_part_is_named(make_bundle: MakeBundle, part: str) -> None:
    """Half a bundle is an error that names the part, not a half-working model."""
    bundle = make_bundle()
    text = (bundle / part).read_text()
    (bundle / part).write_text(text[: len(text) // 2])
    with pytest.raises(BrokenBundleError, match=part):
        Release.load(bundle)
    (bundle / part).unlink()
    with pytest.raises(BrokenBundleError, match=part):
        Release.load(bundle)


def test_golden_rows_must_exist_and_fit(make_bundle: MakeBundle) -> None:
    """Nothing to compare with is no proof."""
    bundle = make_bundle()
    edit(bundle, "golden.json", predictions=[0.5])
    with pytest.raises(BrokenBundleError, match="golden"):
        Release.load(bundle)
    edit(bundle, "golden.json", rows=[], predictions=[])
    with pytest.raises(BrokenBundleError, match="golden"):
        Release.load(bundle)


def test_plan_and_schema_must_agree_on_the_order(make_bundle: MakeBundle) -> None:
    """Columns in another order would be another model."""
    bundle = make_bundle()
    inputs = json.loads((bundle / "plan.json").read_text())["inputs"]
    edit(bundle, "plan.json", inputs=inputs[::-1])
    with pytest.raises(BrokenBundleError, match="in order"):
        Release.load(bundle)


def test_a_pickle_or_an_unknown_framework_is_never_loaded(make_bundle: MakeBundle) -> None:
    """Loading a model never runs what is in its file."""
    import pickle

    bundle = make_bundle()
    (bundle / "model" / "model.ubj").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeModelFileError, match="pickle"):
        Release.load(bundle)
    edit(bundle, "manifest.json", framework="os")
    with pytest.raises(UnknownTrainerError):
        Release.load(bundle)
