"""A declaration that cannot mean anything is refused with its name, the field, what exists and the fix."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest

from mlops_assets import (
    DeclarationError,
    Entity,
    Float64,
    Gate,
    ModelPipeline,
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
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_be_is_refused_with_the_fix(wrong, says):
    with pytest.raises(DeclarationError, match=says):
        wrong()


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
