"""A declaration that cannot mean anything is refused with its name, the field, what exists and the fix."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import dagster as dg
import pytest

from mlops_assets import (
    Constant,
    DeclarationError,
    Entity,
    Float64,
    Float64Array,
    Gate,
    ModelPipeline,
    Monitor,
    Parity,
    Popularity,
    Resources,
    Search,
    Serve,
    String,
    TimeSplit,
    feature_view,
    labels,
    source,
)
from mlops_assets.catalog import Catalog, UnknownDeclarationError, gather
from mlops_assets.trainers import XGBoostClassifier

shop = Entity("shop", "shop_id")
person = Entity("person", "person_id")
weekly = dg.WeeklyPartitionsDefinition("2024-01-01")


@source(schema={"shop_id": String("Shop")}, key=["shop_id"])
def orders():
    """Orders."""


@feature_view(entities=[shop], schema={"spend": Float64("Money spent"), "visits": Float64("Visits")})
def shop_week(orders):
    """A shop's week."""


@feature_view(entities=[person], schema={"age": Float64("Age", unit="year")})
def person_facts(orders):
    """A person."""


@labels(key="order_id", entities=[shop], targets={"late": Float64("Late")}, request={"basket": Float64("Items")})
def deliveries(orders):
    """Deliveries."""


def pipeline(**changes) -> ModelPipeline:
    given = {
        "name": "late",
        "team": "shop",
        "labels": deliveries,
        "label": "late",
        "features": [shop_week],
        "trainer": XGBoostClassifier(),
        "cutoffs": weekly,
        "gate": Gate("roc_auc", at_least=0.6),
    }
    return ModelPipeline(**(given | changes))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: shop_week[["spent"]], r"shop_week'.*features is \['spent'\] \(allowed: spend, visits\)"),
        (lambda: pipeline(label="lat"), r"model 'shop/late'.*label is 'lat' \(allowed: late,.*Choose one"),
        (lambda: pipeline(gate=Gate("mae", at_most=3)), r"gate.metric is 'mae' \(allowed: .*roc_auc.*Choose one"),
        (lambda: pipeline(gate=Gate("roc_auc", at_most=0.5)), r"State the floor with at_least="),
        (lambda: pipeline(gate=Gate("roc_auc", at_least=0.5, slices=["region"])), r"gate.slices is \['region'\]"),
        (lambda: pipeline(features=[person_facts]), r"features is 'person_facts'.*no join key person_id"),
        (lambda: pipeline(features=[shop_week, shop_week[["spend"]]]), r"\['spend'\].*distinct names"),
        (lambda: pipeline(name="Late-Arrival"), r"name is 'Late-Arrival'.*Rename"),
        (lambda: Serve(canary=[50, 10, 100]), r"canary is \[50, 10, 100\].*Sort them"),
        (lambda: Serve(canary=[10, 50]), r"canary is \[10, 50\].*end with 100"),
        (lambda: Search(trials=0), r"trials is 0"),
        (lambda: TimeSplit(holdout=timedelta(0)), r"holdout is"),
        (lambda: TimeSplit(window=timedelta(days=20)), r"window is.*Leave rows to train on"),
        (lambda: Gate("roc_auc"), r"exactly one.*State the floor"),
        (lambda: feature_view(entities=[shop], schema={})(lambda orders: orders), r"name is '<lambda>'"),
        (lambda: feature_view(entities=[shop], schema={"shop_id": Float64})(shop_week.compute), r"features only"),
        (lambda: feature_view(entities=[shop], schema={"a": Float64}, ttl=timedelta(0))(shop_week.compute), r"ttl is"),
        (lambda: replace(shop_week, schema={"a": Float64Array}), r"schema of 'a', size is None \(allowed: 1 or more"),
        (lambda: replace(shop_week, schema={"a": Float64("A", size=3)}), r"schema of 'a', size is 3"),
        (lambda: replace(shop_week, cold_start=Constant({"spent": 0})), r"cold_start is \['spent'\].*Name features"),
        (lambda: replace(shop_week, cold_start=Popularity("spent")), r"cold_start is \['spent'\] \(allowed: spend"),
        (lambda: replace(shop_week, schema={"a": String}, cold_start=Popularity("a")), r"cold_start.by is 'a'.*number"),
        (lambda: replace(orders, stream="orders"), r"source '.*orders': stream is 'orders'.*placed by its time"),
        (lambda: Parity(rows=0), r"Parity.*rows from 1"),
        (lambda: Monitor(null_share_rise=2.0), r"null_share_rise is 2.0 \(allowed: a share from 0 to 1\)"),
        (lambda: Monitor(window=timedelta(0)), r"Monitor: window is .*a positive duration"),
        (lambda: Monitor(volume_change=1.0), r"volume_change over 1"),
        (lambda: Parity(at_most=1.0), r"at_most in \[0, 1\)"),
        (lambda: Resources(cpus=0), r"cpus is 0 \(allowed: more than 0"),
        (lambda: Resources(retries=-1), r"retries is -1"),
        (lambda: Resources(tolerations=[{"kee": "gpu"}]), r"tolerations is 'kee' \(allowed: key, operator"),
        (lambda: pipeline(compute="mainframe"), r"compute is 'mainframe' \(allowed: kubernetes, local"),
        (lambda: pipeline(accelerator="cuda", compute="ray"), r"resources.gpus is 0 .*Say resources="),
        (lambda: pipeline(accelerator="mlx"), r"accelerator is 'mlx' \(allowed: auto, cuda, cpu.*XGBoostClassifier"),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_be_is_refused_with_the_fix(wrong, says):
    with pytest.raises(DeclarationError, match=says):
        wrong()


def test_features_of_one_view_that_are_chosen_apart_are_read_together():
    """The inputs keep the order in which they were chosen; the view is joined and looked up once."""
    model = pipeline(features=[shop_week[["visits"]], shop_week[["spend"]]])
    assert model.inputs == ("basket", "visits", "spend")
    assert [(item.view.name, item.features) for item in model.selections] == [("shop_week", ("visits", "spend"))]


def test_a_stand_in_is_a_table_of_the_catalog():
    """What stands in for missing rows is declared by the view alone, and published as any other view."""
    warm = replace(shop_week, cold_start=Popularity("visits", window=timedelta(days=10)))
    catalog = Catalog.of([orders, warm])
    stand_in = catalog.view(f"{warm.id}_cold_start")
    assert stand_in is warm.stand_in
    assert (stand_in.inputs, stand_in.join_keys, stand_in.lookback) == (("shop_week",), (), timedelta(days=10))
    assert shop_week.stand_in is None


def test_two_declarations_of_one_name_are_refused():
    with pytest.raises(DeclarationError, match=r"model 'shop/late'.*one declaration per name.*Rename one"):
        Catalog.of([orders, shop_week, deliveries, pipeline(), pipeline(label="late")])


def test_an_input_that_no_table_provides_is_refused_by_the_parameters_name():
    with pytest.raises(DeclarationError, match=r"parameter is 'orders'"):
        Catalog.of([shop_week])


def test_a_model_on_a_table_nobody_declared_at_top_level_is_refused():
    with pytest.raises(DeclarationError, match=r"model 'shop/late'.*features is .*shop_week.*Declare it"):
        Catalog.of([orders, deliveries, pipeline()])


def test_the_teams_declarations_are_gathered_from_python_and_yaml():
    catalog = gather()
    assert {"flights/late_arrival", "flights/arrival_delay", "flights/departure_delay"} <= catalog.models.keys()
    assert {"flights/raw_flights", "flights/weather_hourly", "flights/arrivals"} <= catalog.tables.keys()


def test_a_misspelt_reference_says_what_exists_and_the_nearest():
    with pytest.raises(
        UnknownDeclarationError, match=r"'flights/wether_hourly'.*Did you mean 'flights/weather_hourly'"
    ):
        gather().features("flights/wether_hourly")


def test_features_are_referred_to_as_feast_writes_them():
    selection = gather().features("flights/weather_hourly:temp, precip")
    assert (selection.view.name, selection.features) == ("weather_hourly", ("temp", "precip"))
