"""Post-processing: declared as expressions, carried as data, the same for one row and for many, and never Python."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_assets import Bool, Float64, Float64Array, Int64, ModelPipeline, PostProcessing, String, postprocess
from mlops_assets.catalog import gather_python
from mlops_assets.declarations import DeclarationError
from mlops_assets.serving.answers import FrameInputs, RowInputs
from mlops_assets.serving.bundle import BrokenBundleError
from mlops_assets.serving.folding import PREDICTION
from mlops_assets.serving.postprocess import FEW_ROWS, FILE, Postprocess

MODEL = "flights/late_arrival"
SAID = {"likely_late": Bool("Worth a warning"), "risk": String("low or high"), "minutes": Float64("Guess", "min")}


@postprocess(schema=SAID)
def lateness(prediction: pl.Expr, distance: pl.Expr, carrier_mean_delay_7d: pl.Expr) -> dict[str, pl.Expr]:
    """What a probability means."""
    return {
        "likely_late": (prediction >= 0.4) & (distance > 100),
        "risk": pl.when(prediction < 0.2).then(pl.lit("low")).otherwise(pl.lit("high")),
        "minutes": carrier_mean_delay_7d * prediction,
    }


def declared(*, schema: Any = None, compute: Any = None, **changes: Any) -> ModelPipeline:
    made = PostProcessing("said", "test", schema or SAID, compute or lateness.compute)
    return gather_python().model(MODEL).with_(**{"postprocess": made, **changes})


def computing(expression: Callable[[pl.Expr], Any]) -> Callable[..., Any]:
    def made(prediction: pl.Expr) -> Any:
        return expression(prediction)

    return made


@pytest.mark.parametrize(
    ("schema", "compute", "told"),
    [
        ({"x": Bool}, lambda prediction, wether: prediction > wether, r"parameter is \['wether'\] \(allowed: predic"),
        ({"x": Float64}, computing(lambda p: {"y": p}), r"function is \['y'\] .*one expression for each column"),
        ({}, None, "at least one column"),
        ({"x": Float64Array("Two", size=2)}, None, "at least one column of Bool, Int64, Float64, String"),
        ({"x": Float64}, computing(lambda p: p - p.mean()), r"'x' looks at other rows than its own"),
        ({"x": Float64}, computing(lambda p: p.rank()), r"other rows"),
        ({"x": Bool}, computing(lambda p: p > p.shift()), r"other rows"),
        ({"x": Float64}, computing(lambda p: p.map_elements(lambda one: one)), r"calls a Python function"),
        ({"x": Float64}, computing(lambda p: pl.lit(1.0)), r"reads no input"),
        ({"release": Float64}, computing(lambda p: p), r"schema is \['release'\] \(allowed: names that neither"),
        ({"fallbacks": Float64}, computing(lambda p: p), r"schema is \['fallbacks'\]"),
        ({"distance": Float64}, computing(lambda p: p), r"schema is \['distance'\]"),
        ({"late": Float64}, computing(lambda p: p), r"schema is \['late'\]"),
        ({"flight_id": Float64}, computing(lambda p: p), r"schema is \['flight_id'\]"),
    ],
)
def test_what_could_not_be_said_of_each_row_alone_is_refused(schema: Any, compute: Any, told: str) -> None:
    """When the model is declared: other rows, Python, columns that are not there, names that something else has."""
    with pytest.raises(DeclarationError, match=told):
        gather_python().model(MODEL).with_(
            postprocess=PostProcessing("said", "test", schema, compute or computing(lambda p: p))
        )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Golden rows of the declared model, and its post-processing as a candidate writes it."""
    model = declared()
    rows = [[float(50 * number) if name == "distance" else 2.0 for name in model.inputs] for number in range(6)]
    golden = {"rows": rows, "predictions": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]}
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    (tmp_path / "plan.json").write_text(json.dumps({"inputs": model.inputs}))
    post = Postprocess.of(model)
    assert post
    post.write(tmp_path, model.inputs)
    return tmp_path


def test_a_bundle_says_what_the_declaration_says(bundle: Path) -> None:
    """Values, types and meanings, after a round through JSON; a bundle without the file has none."""
    checked(bundle)
    post = Postprocess.load(bundle)
    assert post and post.fields == SAID and post.inputs.keys() == {PREDICTION, "distance", "carrier_mean_delay_7d"}
    names = ("distance", "unused", "carrier_mean_delay_7d")
    rows = [[200.0, "x", 10.0], [50, None, None], [None, None, 3.0]]
    assert post.outputs(rows, names, [0.5, 0.5, 0.1]) == {
        "likely_late": [True, False, False],
        "risk": ["high", "high", "low"],
        "minutes": [5.0, None, pytest.approx(0.3)],
    }
    (bundle / FILE).unlink()
    assert Postprocess.load(bundle) is None


def checked(bundle: Path) -> None:
    """As a release is loaded."""
    post = Postprocess.load(bundle)
    assert post
    post.check(bundle)


@pytest.mark.parametrize("folds", [True, False])
def test_one_row_and_many_and_a_frame_are_answered_alike(folds: bool) -> None:
    """Whether expressions are simple enough to be answered without Polars or not, whoever else asks."""

    def made(prediction: pl.Expr, distance: pl.Expr, carrier_mean_delay_7d: pl.Expr) -> dict[str, pl.Expr]:
        simple = lateness.compute(prediction, distance, carrier_mean_delay_7d)
        return simple if folds else {**simple, "minutes": (carrier_mean_delay_7d * prediction).round(1)}

    model = declared(compute=made)
    post = Postprocess.of(model)
    assert post and all(output.folded for output in post.made.values()) is folds
    names, count = ["distance", "carrier_mean_delay_7d"], 2 * FEW_ROWS
    rows = [[None if n % 7 == 0 else n, None if n % 5 == 0 else n / 3] for n in range(count)]
    said = [n / count for n in range(count)]
    many = post.outputs(rows, names, said)
    alone = [post.outputs([row], names, [one]) for row, one in zip(rows, said, strict=True)]
    assert many == {name: [one[name][0] for one in alone] for name in SAID}
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Float64), orient="row").select(*names[::-1])
    assert post.outputs_of(RowInputs(rows), names, said) == post.outputs_of(FrameInputs(frame), names, said) == many
    assert post.outputs_of(FrameInputs(frame.clear()), names, []) == {name: [] for name in SAID}


@pytest.mark.parametrize("folded", [None, ["value", 1.0]])
def test_no_python_is_loaded_from_a_bundle(bundle: Path, folded: Any) -> None:
    """An expression that was swapped for one with a pickled function is refused unread, and the bundle with it."""
    document = json.loads((bundle / FILE).read_text())
    smuggled = pl.col(PREDICTION).map_batches(lambda rows: rows).meta.serialize()
    document["outputs"]["minutes"] |= {"expression": b64encode(smuggled).decode(), "folded": folded}
    (bundle / FILE).write_text(json.dumps(document))
    with pytest.raises(BrokenBundleError, match="'minutes' calls a Python function"):
        Postprocess.load(bundle)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda document: document["golden"]["risk"].reverse(),
            r"output 'risk' of a golden row is 'low' and was 'high'",
        ),
        (lambda document: document["golden"].pop("risk"), r"KeyError: 'risk'"),
        (
            lambda document: document["outputs"]["risk"].update(folded=["import", ["value", "os"]]),
            r"KeyError: 'import'",
        ),
        (lambda document: document["outputs"]["risk"].update(code="print()"), r"unexpected keyword argument 'code'"),
        (lambda document: document.pop("inputs"), r"KeyError: 'inputs'"),
    ],
)
def test_a_bundle_that_would_say_something_else_is_refused(bundle: Path, change: Any, told: str) -> None:
    """Its golden rows hold post-processing to what it said in training, as they hold the model."""
    document = json.loads((bundle / FILE).read_text())
    change(document)
    (bundle / FILE).write_text(json.dumps(document))
    with pytest.raises(BrokenBundleError, match=told):
        checked(bundle)


def test_the_projects_own_says_how_likely_and_whom_to_warn() -> None:
    """`flights/late_arrival`: a threshold and a band, from the probability alone, in a microsecond."""
    post = Postprocess.of(gather_python().model(MODEL))
    assert post and all(output.folded for output in post.made.values())
    outputs = post.outputs([[]] * 4, [], [0.1, 0.2, 0.35, 0.9])
    assert outputs["likely_late"] == [False, False, True, True]
    assert outputs["risk"] == ["low", "raised", "high", "high"]
    assert {name: field.dtype for name, field in post.fields.items()} == {"likely_late": "Bool", "risk": "String"}


def test_whole_numbers_and_texts_come_out_as_declared() -> None:
    """An Int64 is a whole number in the answer, also where the expression gives another type."""
    model = declared(
        schema={"band": Int64, "name": String},
        compute=computing(lambda p: {"band": p * 10 // 1, "name": pl.concat_str(pl.lit("p"), (p * 10).cast(pl.Int64))}),
    )
    post = Postprocess.of(model)
    assert post and post.outputs([[]], [], [0.37]) == {"band": [3], "name": ["p3"]}


def test_a_value_that_fits_no_type_is_null_and_fails_no_other_row() -> None:
    """Infinity is no whole number: that row's output is missing, its neighbours' are there."""
    post = Postprocess.of(declared(schema={"odds": Int64}, compute=computing(lambda p: p / (1 - p))))
    assert post and post.outputs([[]] * 3, [], [0.5, 1.0, 0.9]) == {"odds": [1, None, 9]}
