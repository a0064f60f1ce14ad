"""Declarations become native Feast objects that say the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from mlops_assets import Bool, Entity, FeatureView, Float64, Int64, String, UnixTimestamp, feast_objects
from mlops_assets.catalog import gather
from mlops_assets.declarations import DeclarationError
from resources.lake import Lake

airport, aircraft = Entity("airport", "origin", description="Where from"), Entity("aircraft", "number", Int64)
weather = FeatureView(
    name="weather",
    team="flights",
    schema={
        "temp": Float64("Air temperature", unit="degF", minimum=-60),
        "storm": Bool("Storm"),
        "sky": String("Sky"),
        "gusts": Int64("Gusts"),
        "sunrise": UnixTimestamp("Sunrise"),
    },
    compute=pl.LazyFrame,
    entities=(airport, aircraft),
    ttl=timedelta(hours=3),
    owners=("team:flights", "team:weather"),
    description="Weather as observed",
)


def compiled(views: list[FeatureView], models: list[Any] | None = None) -> dict[tuple[str, str], Any]:
    found = feast_objects.compile(views, models or [], Lake())
    return {(type(item).__name__, item.name): item for item in found}


def test_a_view_says_in_feast_what_was_declared(home: Path) -> None:
    objects = compiled([weather])
    view = objects["FeatureView", "flights__weather"]
    assert {field.name: (str(field.dtype), field.description) for field in view.features} == {
        "temp": ("Float64", "Air temperature"),
        "storm": ("Bool", "Storm"),
        "sky": ("String", "Sky"),
        "gusts": ("Int64", "Gusts"),
        "sunrise": ("UnixTimestamp", "Sunrise"),
    }
    assert view.features[0].tags == {"unit": "degF", "minimum": "-60"}
    assert view.join_keys == ["origin", "number"]
    assert (view.ttl, view.online, view.description) == (timedelta(hours=3), True, "Weather as observed")
    assert view.owner == "team:flights, team:weather"
    assert view.tags == {"team": "flights", "ttl": "3:00:00", "owner": "team:flights, team:weather", "online": "true"}
    assert objects["Entity", "airport"].join_key == "origin"
    assert str(objects["Entity", "aircraft"].value_type) == "ValueType.INT64"


def test_a_views_source_is_the_directory_of_its_offline_asset(home: Path) -> None:
    source = compiled([weather])["FileSource", "flights__weather"]
    assert source.path == f"{home}/lake/flights/offline/weather/"
    assert source.timestamp_field == "event_timestamp"


def test_a_view_without_a_ttl_has_none_in_feast(home: Path) -> None:
    assert not compiled([replace(weather, ttl=None)])["FeatureView", "flights__weather"].ttl


def test_a_models_inputs_are_a_feature_service(home: Path) -> None:
    model = SimpleNamespace(
        team="flights",
        name="late",
        title="model 'flights/late'",
        description="",
        label="late",
        task="classification",
        owners=("team:flights",),
        chosen=[weather[["sky", "temp"]]],
        on_demand=[],
    )
    service = compiled([weather], [model])["FeatureService", "flights__late"]
    (projection,) = service.feature_view_projections
    assert (projection.name, [field.name for field in projection.features]) == ("flights__weather", ["sky", "temp"])
    assert service.tags == {"team": "flights", "label": "late", "task": "classification"}


def test_entities_are_shared_by_name_and_must_agree(home: Path) -> None:
    other = replace(weather, name="other")
    assert len([key for key in compiled([weather, other]) if key[0] == "Entity"]) == 2
    with pytest.raises(DeclarationError, match=r"feature view 'flights/other': entities is .*Share one Entity"):
        compiled([weather, replace(other, entities=(Entity("airport", "dest"),))])


def test_everything_that_the_teams_declare_compiles(home: Path) -> None:
    catalog = gather()
    found = feast_objects.compile(catalog.views, catalog.models.values(), Lake())
    names = {item.name for item in found}
    assert {feast_objects.feast_name(item) for item in [*catalog.views, *catalog.models.values()]} <= names
