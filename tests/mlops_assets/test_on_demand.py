"""On-demand views: one function, whoever computes it: training, the endpoint, or a Feast client."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mlops_assets import (
    Bool,
    Entity,
    FeatureView,
    Float64,
    Gate,
    Int64,
    Labels,
    ModelPipeline,
    OnDemandView,
    String,
    on_demand,
)
from mlops_assets.catalog import Catalog, asset_key, gather
from mlops_assets.declarations import DeclarationError
from mlops_assets.links.training_set import column_lineage, point_in_time_rows
from mlops_assets.serving.plan import FeaturePlan, look_up
from mlops_assets.serving.transform import NotRowByRowError, Transform
from mlops_assets.trainers import XGBoostClassifier
from resources.feast import FeastResource
from resources.lake import Lake

NOON = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)  # plain Feast goes by the wall clock
HOUR = timedelta(hours=1)
airport = Entity("airport", "origin")
weather = FeatureView(
    name="weather",
    team="test",
    schema={"wind": Float64, "sky": String, "gusts": Int64},
    compute=pl.LazyFrame,
    entities=(airport,),
    ttl=3 * HOUR,
)
arrivals = Labels(
    name="arrivals",
    team="test",
    schema={"late": Bool},
    compute=lambda: asked().lazy(),
    key="flight_id",
    entities=(airport,),
    request={"distance": Float64("Miles"), "runway": String},
)
FELT = {"push": Float64, "rough": Bool, "where": String, "hour": Int64}


def felt(wind: Any, gusts: Any, sky: Any, distance: Any, runway: Any, event_timestamp: Any) -> Any:
    return {
        "push": wind / 2 + distance,
        "rough": (gusts > 3) & (wind > 10),
        "where": pl.concat_str(pl.lit("under "), sky, pl.lit(" on "), runway),
        "hour": event_timestamp.dt.hour(),
    }


def view(compute: Callable[..., Any] = felt, **changes: Any) -> OnDemandView:
    given: dict[str, Any] = {"schema": FELT, "reads": (weather.selection, arrivals)}
    return OnDemandView(name="felt", team="test", compute=compute, **{**given, **changes})


def model(*features: Any) -> ModelPipeline:
    weekly = gather().model("flights/late_arrival").cutoffs
    return ModelPipeline(
        name="late",
        team="test",
        labels=arrivals,
        label="late",
        features=features,
        trainer=XGBoostClassifier(),
        cutoffs=weekly,
        gate=Gate("roc_auc", at_least=0.5),
    )


def computing(expression: Callable[[pl.Expr], Any]) -> Callable[..., Any]:
    def push(wind: pl.Expr) -> Any:
        return expression(wind)

    return push


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda: view(lambda wind, storm: wind), r"parameter is \['storm'\] \(allowed: event_timestamp, wind"),
        (lambda: view(computing(lambda wind: {"push": wind})), r"function is \['push'\] .*one expression for each"),
        (lambda: view(schema={"wind": Float64}), r"schema is \['wind'\] \(allowed: names that no input has\)"),
        (lambda: view(schema={}), r"at least one column"),
        (lambda: view(computing(lambda wind: wind.mean()), schema={"push": Float64}), r"other rows"),
        (lambda: view(computing(lambda wind: wind.shift()), schema={"push": Float64}), r"other rows"),
        (lambda: view(computing(lambda wind: wind.filter(wind > 1)), schema={"push": Float64}), r"other rows"),
        (lambda: view(computing(lambda wind: 1 + wind / wind.max()), schema={"push": Float64}), r"other rows"),
        (lambda: view(computing(lambda wind: (wind * 40).is_in(wind)), schema={"rough": Bool}), r"other rows"),
        (lambda: view(computing(lambda wind: pl.lit(1.0)), schema={"push": Float64}), r"reads no input"),
        (
            lambda: view(computing(lambda wind: wind.map_batches(lambda rows: rows)), schema={"push": Float64}),
            r"calls a Python function.*Use Polars expressions",
        ),
        (lambda: view(reads=(view().selection,)), r"reads is \['test/felt'\] \(allowed: feature views and label"),
        (lambda: view(reads=(weather.selection, weather.selection)), r"reads is \['gusts', 'sky', 'wind'\]"),
        (lambda: model(view(), view()), r"features is \['push', 'rough', 'where', 'hour'\].*distinct names"),
        (lambda: Catalog.of([arrivals, model(view())]), r"features is 'test/felt'.*Declare it at the top level"),
    ],
)
def test_a_view_that_could_not_be_the_same_everywhere_is_refused(declare: Callable[[], Any], told: str) -> None:
    """What looks at other rows, runs Python, or hides an input would differ between training and serving."""
    with pytest.raises(DeclarationError, match=told):
        declare()


def test_no_python_is_loaded_from_a_plan() -> None:
    """A transform that was swapped for one with a pickled function is refused unread."""
    from base64 import b64encode

    smuggled = pl.col("wind").map_batches(lambda rows: rows).meta.serialize()
    transform = Transform("test/felt", {"wind": "Float64"}, {"push": b64encode(smuggled).decode()})
    with pytest.raises(NotRowByRowError, match="'push' calls a Python function"):
        transform.columns([{"wind": 1.0}])


@pytest.fixture
def published(home: Path) -> dict[str, pl.LazyFrame]:
    """Weather at two airports in the lake; one with nulls, a third airport without any."""
    frame = pl.DataFrame(
        {
            "origin": ["EWR", "EWR", "JFK"],
            "event_timestamp": [NOON - 5 * HOUR, NOON - HOUR, NOON - HOUR],
            "wind": [99.0, 20.0, None],
            "sky": ["clear", "clouds", None],
            "gusts": [9, 4, 1],
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )
    Lake().write(frame, asset_key(weather), "2013-04-01")
    return {"view_weather": frame.lazy()}


def asked() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "flight_id": ["1", "2", "3"],
            "origin": ["EWR", "JFK", "LGA"],
            "event_timestamp": [NOON] * 3,
            "distance": [100.0, 200.0, 300.0],
            "runway": ["04L", "13R", None],
        },
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )


EXPECTED = [
    {"push": 110.0, "rough": True, "where": "under clouds on 04L", "hour": NOON.hour},
    {"push": None, "rough": False, "where": None, "hour": NOON.hour},
    {"push": None, "rough": None, "where": None, "hour": NOON.hour},
]


def test_training_the_endpoint_and_plain_feast_compute_the_same(published: dict[str, pl.LazyFrame]) -> None:
    """The training set, the endpoint's look-up, Feast's historical and Feast's online features: one answer."""
    from mlops_assets import feast_objects

    pipeline = model(view())
    offline = point_in_time_rows(pipeline, asked().lazy(), published)
    assert offline.select(list(FELT)).to_dicts() == EXPECTED

    feast = FeastResource()
    feast.apply(feast_objects.compile([weather], [pipeline], Lake()))
    feast.write_online("test__weather", published["view_weather"].collect())
    plan = FeaturePlan.of(pipeline)
    looked = look_up(plan, feast.packed(), asked().to_dicts(), NOON)
    assert [dict(zip(plan.inputs, one.values, strict=True)) for one in looked] == [
        {"distance": row["distance"], "runway": row["runway"], **expected}
        for row, expected in zip(asked().to_dicts(), EXPECTED, strict=True)
    ]

    store, names = feast.store(), [f"test__felt:{name}" for name in FELT]
    history = store.get_historical_features(entity_df=asked().to_pandas(), features=names).to_arrow()
    assert pl.DataFrame(history).sort("flight_id").select(list(FELT)).to_dicts() == EXPECTED
    rows = asked().drop("flight_id").to_dicts()
    answer = store.get_online_features(features=names, entity_rows=rows).to_dict()
    assert [{name: answer[name][row] for name in FELT} for row in range(len(rows))] == EXPECTED


def test_the_columns_of_an_on_demand_feature_come_from_what_it_reads() -> None:
    """Dagster's lineage leads from the computed feature to stored columns and to what the caller gave."""
    lineage = column_lineage(model(view(schema={"push": Float64}, compute=lambda wind, distance: wind + distance)))
    deps = {(dep.asset_key.to_user_string(), dep.column_name) for dep in lineage.deps_by_column["push"]}
    assert deps == {("test/offline/weather", "wind"), ("test/arrivals", "distance")}
    assert "wind" not in lineage.deps_by_column


def test_yaml_names_an_on_demand_view_as_any_other() -> None:
    """`flights/departure_delay` is declared in YAML and reads one."""
    pipeline = gather().model("flights/departure_delay")
    assert [item.view.id for item in pipeline.on_demand] == ["flights/departure_pressure"]
    assert "waiting_share" in pipeline.inputs and "planned_departures_1h" in pipeline.selections[1].features


def test_the_example_of_the_page_is_a_view_that_computes() -> None:
    """docs/features.md, read as code; a function of one feature returns its expression alone."""
    from feature_assets.flights.arrivals import arrivals
    from feature_assets.flights.congestion import origin_congestion
    from resources.environment import PROJECT

    (code,) = re.findall(r"```python\n(@on_demand.*?)```", (PROJECT / "docs" / "features.md").read_text(), re.DOTALL)
    names = {"origin_congestion": origin_congestion, "arrivals": arrivals, "on_demand": on_demand, "Float64": Float64}
    found: dict[str, Any] = {**names, "pl": pl, "__name__": "feature_assets.flights.page"}
    exec(code, found)
    rows = [{"distance": 300.0, "planned_minutes": 60.0}]
    assert (found["pace"].id, found["pace"].needs) == ("flights/pace", ())
    assert Transform.of(found["pace"].selection).columns(rows) == {"planned_speed": [300.0]}
