"""The same declaration in YAML: equal to the Python one, refused in the same words, known to `dg`."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.core.component_tree import ComponentTreeException
from pydantic import ValidationError

from mlops_assets.catalog import Catalog, UnknownDeclarationError, gather, gather_python
from mlops_assets.component import (
    Cutoffs,
    GateSpec,
    ModelPipelineComponent,
    MonitorSpec,
    ParitySpec,
    SearchSpec,
    ServeSpec,
    SplitSpec,
    load_components,
)
from mlops_assets.declarations import (
    Approval,
    Checkpoint,
    DeclarationError,
    FloatRange,
    Gate,
    IntRange,
    ModelPipeline,
    Monitor,
    Parity,
    Resources,
    Search,
    Serve,
    TimeSplit,
)
from mlops_assets.pipeline import model_definitions
from mlops_assets.trainers import UnknownTrainerError, XGBoostClassifier
from resources.environment import PROJECT

WORDS: dict[str, Any] = {
    "name": "late_again",
    "team": "flights",
    "description": "Probability of a late arrival.",
    "owners": ["team:flights"],
    "labels": "flights/arrivals",
    "label": "late",
    "features": ["flights/weather_hourly", "flights/carrier_punctuality:carrier_mean_delay_7d, carrier_flights_7d"],
    "trainer": {"name": "XGBoostClassifier", "params": {"n_estimators": 50}},
    "cutoffs": {"weekly": "monday", "start": "2013-01-07", "end": "2014-01-06"},
    "split": {"holdout_days": 7, "validation_days": 3.5, "window_days": 60},
    "search": {
        "trials": 4,
        "seed": 3,
        "space": {
            "max_depth": {"type": "int", "low": 3, "high": 9},
            "learning_rate": {"type": "float", "low": 0.03, "high": 0.3, "log": True},
            "booster": ["gbtree", "dart"],
        },
    },
    "gate": {"metric": "roc_auc", "at_least": 0.6, "slices": ["carrier"], "slice_min_rows": 50, "latency_ms": 20.0},
    "canary": [20, 100],
    "monitor": {"psi": 0.3, "min_rows": 100, "drifted_share": 0.5, "window_days": 3, "cooldown_days": 2},
}


def in_python() -> ModelPipeline:
    """What WORDS say, as a file in `model_assets` would."""
    catalog = gather_python()
    punctuality = catalog.view("flights/carrier_punctuality")
    return ModelPipeline(
        name="late_again",
        team="flights",
        description="Probability of a late arrival.",
        owners=["team:flights"],
        labels=catalog.labels("flights/arrivals"),
        label="late",
        features=[
            catalog.view("flights/weather_hourly").selection,
            punctuality[["carrier_mean_delay_7d", "carrier_flights_7d"]],
        ],
        trainer=XGBoostClassifier(n_estimators=50),
        cutoffs=dg.WeeklyPartitionsDefinition("2013-01-07", end_date="2014-01-06", day_offset=1, end_offset=1),
        split=TimeSplit(timedelta(days=7), timedelta(days=3.5), timedelta(days=60)),
        search=Search(
            4,
            {
                "max_depth": IntRange(3, 9),
                "learning_rate": FloatRange(0.03, 0.3, log=True),
                "booster": ["gbtree", "dart"],
            },
            seed=3,
        ),
        gate=Gate("roc_auc", at_least=0.6, slices=["carrier"], slice_min_rows=50, latency_ms=20.0),
        serve=Serve([20, 100]),
        monitor=Monitor(psi=0.3, min_rows=100, drifted_share=0.5, window=timedelta(days=3), cooldown=timedelta(days=2)),
    )


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModelPipeline]:
    """`load(name=..., ...)`: the model of a defs.yaml with these words changed, found as in the team folders."""
    folder = tmp_path / "yaml_models" / "flights" / "late_again"
    folder.mkdir(parents=True)
    package = ModuleType("yaml_models")
    package.__path__, package.__file__ = [str(tmp_path / "yaml_models")], None
    monkeypatch.setitem(sys.modules, "yaml_models", package)

    def loaded(**changes: Any) -> ModelPipeline:
        words = {name: value for name, value in (WORDS | changes).items() if value is not None}
        kind = "mlops_assets.component.ModelPipelineComponent"
        path = folder / "defs.yaml"
        path.write_text(yaml.safe_dump({"type": kind, "attributes": words}, sort_keys=False))
        (model,), others = load_components([(package, path)], gather_python())
        assert others == []
        return model

    return loaded


def specs_of(defs: dg.Definitions) -> dict[dg.AssetKey, dg.AssetSpec]:
    return {spec.key: spec for asset in defs.assets or () for spec in asset.specs}


def test_checkpoints_are_declared_in_yaml_too(load):
    """Left out as Python's default; no minutes keep none; by rounds, or by a time of one's own."""
    assert load().checkpoint == Checkpoint() and load(checkpoint={"minutes": 0}).checkpoint == Checkpoint(None)
    assert load(checkpoint={"minutes": 2, "rounds": 50}).checkpoint == Checkpoint(timedelta(minutes=2), 50)
    with pytest.raises(DeclarationError, match=r"rounds is 0 \(allowed: 1 or more"):
        load(checkpoint={"rounds": 0})


def test_approval_is_asked_for_in_yaml_too(load):
    """Left out nobody is asked; an empty one waits as long as Python's does."""
    assert load().approval is None and load(approval={}).approval == Approval()
    assert load(approval={"expires_days": 1.5}).approval == Approval(expires=timedelta(days=1.5))
    with pytest.raises(DeclarationError, match=r"expires is .* a positive duration"):
        load(approval={"expires_days": 0})


def test_the_machine_is_declared_in_yaml_too(load):
    """Where it is trained, on what, and what it needs; left out as Python leaves them out."""
    bare = load()
    assert (bare.compute, bare.accelerator, bare.resources) == ("", "auto", Resources())
    needs = {"cpus": 4, "memory_gb": 8, "gpus": 1, "spot": True, "retries": 2, "start_within_minutes": 5}
    model = load(compute="subprocess", accelerator="cuda", resources=needs)
    assert (model.compute, model.accelerator) == ("subprocess", "cuda")
    assert model.resources == Resources(4, 8, 1, spot=True, retries=2, start_within=timedelta(minutes=5))


def test_the_same_words_make_the_same_declaration(load):
    """Equal as a value, field by field, and so equal in whatever it is compiled to."""
    written, python = load(), in_python()
    for field in dataclasses.fields(ModelPipeline):
        assert getattr(written, field.name) == getattr(python, field.name), field.name
    assert written == python


def test_it_becomes_the_same_assets(load):
    """Keys, groups, descriptions, partitions, checks and code versions."""
    specs = [specs_of(model_definitions(model)) for model in (load(), in_python())]
    assert len(specs[0]) >= 9 and specs[0].keys() == specs[1].keys()
    for key, spec in specs[0].items():
        other = specs[1][key]
        for said in ("description", "group_name", "owners", "kinds", "tags", "partitions_def", "code_version", "deps"):
            assert getattr(spec, said) == getattr(other, said), f"{key}: {said}"


def test_what_is_left_out_is_what_python_leaves_out(load):
    """One place says a default: the declaration."""
    optional = ("description", "owners", "split", "search", "canary", "monitor")
    bare = load(**dict.fromkeys(optional), gate={"metric": "roc_auc", "at_least": 0.6})
    defaults = {field.name: field.default for field in dataclasses.fields(ModelPipeline)}
    for name in ("description", "owners", "split", "search", "serve", "monitor"):
        assert getattr(bare, name) == defaults[name], name
    assert bare.gate == Gate("roc_auc", at_least=0.6)


@pytest.mark.parametrize(
    ("words", "declaration"),
    [
        *((GateSpec, Gate), (MonitorSpec, Monitor), (ParitySpec, Parity), (SplitSpec, TimeSplit), (SearchSpec, Search)),
        (ServeSpec, Serve),
    ],
)
def test_yaml_has_a_word_for_every_field(words: type[dg.Model], declaration: type[Any]):
    """Durations are in days, a deadline in seconds; nothing can be said in Python alone."""
    fields = {field.name for field in dataclasses.fields(declaration)}
    assert {name.removesuffix("_days").removesuffix("_seconds") for name in words.model_fields} == fields


def test_a_model_has_a_word_for_every_field():
    """`canary` alone is short for `serve`."""
    fields = {field.name for field in dataclasses.fields(ModelPipeline)}
    assert set(ModelPipelineComponent.model_fields) == fields | {"canary"}


def test_what_serving_promises_and_answers_say_can_be_written(load):
    """Every word of `Serve`, and the Python path of the post-processing; what is left out is as Python leaves it."""
    from model_assets.flights.late_arrival import lateness

    words = {"canary": [5, 100], "max_error_share": 0.05, "without_store": "fall back", "deadline_seconds": 1.5}
    model = load(canary=None, serve=words, postprocess="model_assets.flights.late_arrival:lateness")
    assert model.serve == Serve([5, 100], 0.05, without_store="fall back", deadline=timedelta(seconds=1.5))
    assert model.postprocess is lateness
    assert load(canary=None, serve={}).serve == load(canary=None).serve == Serve()


def test_a_cutoff_is_there_from_its_first_moment_on():
    """Without the offset a weekly partition would exist a week later, and each training would be a week old."""
    cutoffs = Cutoffs(weekly="wednesday", start="2024-01-03").partitions()
    assert cutoffs.get_partition_keys(current_time=datetime(2024, 1, 17, tzinfo=UTC))[-1] == "2024-01-17"


# -- refused in the same words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"labels": "flights/arivals"}, UnknownDeclarationError, r"label table 'flights/arivals'.*Did you mean"),
        ({"features": ["flights/wether_hourly"]}, UnknownDeclarationError, r"Did you mean 'flights/weather_hourly'"),
        ({"features": ["flights/weather_hourly:tmp"]}, DeclarationError, r"features is \['tmp'\].*\(allowed: temp,"),
        ({"label": "lat"}, DeclarationError, r"model 'flights/late_again': label is 'lat'.*Choose one"),
        ({"trainer": {"name": "XGBost"}}, UnknownTrainerError, r"no trainer 'XGBost' \(known: .*XGBoostClassifier"),
        ({"canary": [50, 10, 100]}, DeclarationError, r"canary is \[50, 10, 100\].*Sort them"),
        ({"canary": [10, 50]}, DeclarationError, r"end with 100"),
        ({"gate": {"metric": "mae", "at_most": 3}}, DeclarationError, r"gate.metric is 'mae'.*roc_auc"),
        ({"gate": {"metric": "roc_auc"}}, DeclarationError, r"exactly one.*State the floor"),
        ({"split": {"window_days": 20}}, DeclarationError, r"window is.*Leave rows to train on"),
        ({"search": {"trials": 0}}, DeclarationError, r"trials is 0"),
        ({"serve": {"canary": [100]}}, DeclarationError, r"canary is \[20, 100\] \(allowed: one place\)"),
        ({"canary": None, "serve": {"min_requests": 0}}, DeclarationError, r"min_requests from 1"),
        ({"postprocess": "model_assets.nowhere:x"}, DeclarationError, r"postprocess is .*No module named"),
        ({"postprocess": "model_assets.flights.late_arrival:late"}, DeclarationError, r"\(allowed: lateness\)"),
        ({"postprocess": "lateness"}, DeclarationError, r"\(allowed: module:name\)"),
        ({"compute": "mainframe"}, DeclarationError, r"compute is 'mainframe' \(allowed: .*local.*subprocess"),
        ({"accelerator": "mlx"}, DeclarationError, r"accelerator is 'mlx' \(allowed: auto, cuda, cpu: what XGBoost"),
        ({"trainer": {"name": "LightGBMClassifier"}, "accelerator": "cuda"}, DeclarationError, r"allowed: auto, cpu:"),
        ({"resources": {"gpus": -1}}, DeclarationError, r"gpus is -1"),
        ({"resources": {"start_within_minutes": 0}}, DeclarationError, r"start_within is .* a positive duration"),
        ({"name": "Late"}, DeclarationError, r"name is 'Late'.*Rename"),
    ],
)
def test_what_python_refuses_is_refused_and_the_file_is_named(load, changes, error, says):
    with pytest.raises(error, match=says) as refused:
        load(**changes)
    assert refused.value.__notes__[0].endswith("yaml_models/flights/late_again/defs.yaml.")


def test_the_message_is_the_one_of_python(load):
    """Letter by letter: there is one place that judges."""
    with pytest.raises(DeclarationError) as written:
        load(canary=[10, 50])
    with pytest.raises(DeclarationError) as python:
        Serve([10, 50])
    assert str(written.value) == str(python.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"metrik": 1}, r"metrik at .*defs.yaml:\d+"),
        ({"resources": {"gpu": 1}}, r"gpu at .*defs.yaml:\d+"),
        ({"gate": {"metric": "roc_auc", "at_leest": 0.5}}, r"at_leest at .*defs.yaml:\d+"),
        ({"cutoffs": {"weekly": "funday", "start": "2024-01-01"}}, r"weekly at .*defs.yaml:\d+"),
    ],
)
def test_a_word_that_yaml_does_not_have_is_refused_by_its_name(load, changes, says):
    """By Dagster, with file and line."""
    with pytest.raises(ComponentTreeException, match="late_again") as refused:
        load(**changes)
    assert isinstance(refused.value.__cause__, ValidationError)
    assert re.search(says, str(refused.value.__cause__))


def test_an_unknown_accelerator_is_told_the_known_ones(load):
    """With the file that names it."""
    with pytest.raises(ComponentTreeException, match=r"(?s)late_again.*defs.yaml") as refused:
        load(accelerator="tpu")
    assert "Input should be 'auto', 'cuda', 'mlx', 'mps' or 'cpu'" in str(refused.value.__cause__)


# -- in the project -------------------------------------------------------------------------------------------


def test_the_projects_own_component_is_a_model_like_any_other():
    """`departure_delay` is declared in YAML: it is in the catalog and has the whole chain."""
    from mlops_assets.definitions import defs

    model = gather().model("flights/departure_delay")
    assert isinstance(model, ModelPipeline) and model.trainer.framework == "sklearn"
    keys = {spec.key for spec in defs.resolve_all_asset_specs()}
    assert dg.AssetKey(["flights", "departure_delay", "endpoint"]) in keys


def test_a_component_builds_its_definitions_wherever_dagster_loads_it():
    """In a `defs` folder of Dagster's own, too."""
    component = ModelPipelineComponent.resolve_from_yaml(textwrap.dedent(yaml.safe_dump(WORDS)))
    assert dg.AssetKey(["flights", "late_again", "champion"]) in specs_of(component.build_defs(None))


def test_a_component_and_a_file_of_one_name_are_refused(load):
    catalog = gather_python()
    with pytest.raises(DeclarationError, match=r"model 'flights/late_arrival'.*one declaration per name"):
        Catalog.of([*catalog.tables.values(), *catalog.models.values(), load(name="late_arrival")])


def test_dg_knows_the_component(home: Path):
    """`dg list components` names it, with what it is; so does the editor's YAML schema that dg makes of it."""
    command = [str(Path(sys.executable).with_name("dg")), "list", "components", "--package", "mlops_assets"]
    ran = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "mlops_assets.component.ModelPipelineComponent" in ran.stdout
    assert "One model's whole life" in ran.stdout
