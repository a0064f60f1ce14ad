"""The offline store, driven through Feast's own FeatureStore, gives what brute force gives."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import feast

START = datetime(2013, 3, 10, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def weather(*rows: tuple[str | None, float, float | None], created: Sequence[float] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(
        [(origin, at(hours), temp) for origin, hours, temp in rows],
        schema={"origin": pl.String, "event_timestamp": TIME, "temp": pl.Float64},
        orient="row",
    )
    return frame.with_columns(created=pl.Series([at(hours) for hours in created or [0] * frame.height], dtype=TIME))


def entity_rows(*rows: tuple[str | None, float]) -> pd.DataFrame:
    times = pd.Series([pd.Timestamp(at(hours)) for _, hours in rows], dtype="datetime64[us, UTC]")
    return pd.DataFrame({"origin": pd.Series([origin for origin, _ in rows], dtype=object), "event_timestamp": times})


@pytest.fixture
def store(tmp_path: Path) -> feast.FeatureStore:
    """A Feast repository outside this project, with our store as its offline store."""
    from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="elsewhere",
            provider="local",
            registry=str(tmp_path / "registry.db"),
            online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
            offline_store={"type": "resources.polars_offline_store.PolarsOfflineStore"},
            entity_key_serialization_version=3,
            repo_path=tmp_path,
        )
    )


def source(path: Path | str, **options: Any) -> feast.FileSource:
    from feast import FileSource

    return FileSource(name=f"source of {path}", path=str(path), timestamp_field="event_timestamp", **options)


def view(
    of: feast.FileSource, name: str = "weather", ttl: timedelta | None = timedelta(hours=3), feature: str = "temp"
) -> feast.FeatureView:
    from feast import Entity, FeatureView, Field
    from feast.types import Float64, String
    from feast.value_type import ValueType

    return FeatureView(
        name=name,
        entities=[Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)],
        ttl=ttl or timedelta(0),
        schema=[Field(name="origin", dtype=String), Field(name=feature, dtype=Float64)],
        source=of,
    )


def register(store: feast.FeatureStore, *views: feast.FeatureView) -> None:
    from feast import Entity
    from feast.value_type import ValueType

    store.apply([Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING), *views])


def temps(store: feast.FeatureStore, rows: pd.DataFrame, feature: str = "weather:temp", **options: Any) -> list[Any]:
    joined = store.get_historical_features(rows, features=[feature], **options).to_df()
    assert list(joined["origin"]) == list(rows["origin"]), "the entity rows, all of them, in their order"
    column = joined[feature.split(":")[1]]
    return [None if pd.isna(value) else value for value in column]


def test_history_is_read_with_both_ends_of_the_ttl_included(store: feast.FeatureStore, tmp_path: Path) -> None:
    weather(("EWR", 0, 1.0), ("JFK", 1, 3.0), ("EWR", 2, 2.0)).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source("weather.parquet")))
    rows = entity_rows(("EWR", 5), ("EWR", 1), ("JFK", 0), ("EWR", 5.01), (None, 1), ("EWR", 5))
    assert temps(store, rows) == [2.0, 1.0, None, None, None, 2.0]


@pytest.mark.parametrize("path", ["lake/", "lake", "lake/2013-03-*.parquet", "lake/**/*.parquet"])
def test_a_directory_of_days_and_a_glob_are_one_table(store: feast.FeatureStore, tmp_path: Path, path: str) -> None:
    """A file half-written under a hidden name is not part of it."""
    (tmp_path / "lake").mkdir()
    weather(("EWR", 0, 1.0)).write_parquet(tmp_path / "lake" / "2013-03-10.parquet")
    weather(("EWR", 24, 2.0)).write_parquet(tmp_path / "lake" / "2013-03-11.parquet")
    (tmp_path / "lake" / ".2013-03-12.abc.tmp").write_bytes(b"PAR1")
    (tmp_path / "lake" / ".2013-03-12.parquet").write_bytes(b"PAR1")
    register(store, view(source(path)))
    assert temps(store, entity_rows(("EWR", 25), ("EWR", 1))) == [2.0, 1.0]


def test_columns_and_the_time_are_found_under_mapped_names(store: feast.FeatureStore, tmp_path: Path) -> None:
    frame = weather(("EWR", 0, 1.0)).rename({"temp": "t", "event_timestamp": "seen"})
    frame.write_parquet(tmp_path / "weather.parquet")
    mapped = source(tmp_path / "weather.parquet", field_mapping={"t": "temp", "seen": "event_timestamp"})
    register(store, view(mapped))
    assert temps(store, entity_rows(("EWR", 1))) == [1.0]


def test_one_view_is_joined_twice_under_other_keys_and_full_names(store: feast.FeatureStore, tmp_path: Path) -> None:
    from feast import FeatureService

    weather(("EWR", 0, 1.0), ("LAX", 0, 2.0)).write_parquet(tmp_path / "weather.parquet")
    both_ends = view(source(tmp_path / "weather.parquet"))
    here, there = both_ends.with_name("here"), both_ends.with_name("there").with_join_key_map({"origin": "dest"})
    service = FeatureService(name="both", features=[here[["temp"]], there[["temp"]]])
    register(store, both_ends)
    store.apply([service])
    rows = entity_rows(("EWR", 1), ("LAX", 1)).assign(dest=["LAX", "EWR"])
    joined = store.get_historical_features(rows, features=service, full_feature_names=True).to_df()
    assert list(joined.columns) == ["origin", "event_timestamp", "dest", "here__temp", "there__temp"]
    assert joined[["here__temp", "there__temp"]].to_numpy().tolist() == [[1.0, 2.0], [2.0, 1.0]]


def test_a_tie_is_broken_by_creation_and_later_corrections_can_be_left_out(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    weather(("EWR", 0, 2.0), ("EWR", 0, 1.0), created=[2, 0]).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet", created_timestamp_column="created")))
    rows = entity_rows(("EWR", 1), ("EWR", 2))
    assert temps(store, rows) == [2.0, 2.0]
    assert temps(store, rows, filter_by_created_timestamp=True) == [1.0, 2.0]


def test_an_on_demand_view_is_computed_on_what_was_joined(store: feast.FeatureStore, tmp_path: Path) -> None:
    from feast import Field
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.transformation.pandas_transformation import PandasTransformation
    from feast.types import Float64

    weather(("EWR", 0, 50.0)).write_parquet(tmp_path / "weather.parquet")
    here = view(source(tmp_path / "weather.parquet"))

    def celsius(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"celsius": (inputs["temp"] - 32) / 1.8})

    on_demand = OnDemandFeatureView(
        name="metric",
        sources=[here],
        schema=[Field(name="celsius", dtype=Float64)],
        feature_transformation=PandasTransformation(udf=celsius, udf_string="celsius"),
        mode="pandas",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls on-demand views experimental
        register(store, here, on_demand)
    joined = store.get_historical_features(entity_rows(("EWR", 1)), features=["weather:temp", "metric:celsius"])
    assert joined.to_df()[["temp", "celsius"]].to_numpy().tolist() == [[50.0, 10.0]]


def test_what_was_joined_can_be_saved_and_read_again(store: feast.FeatureStore, tmp_path: Path) -> None:
    from feast.errors import SavedDatasetLocationAlreadyExists
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    weather(("EWR", 0, 1.0)).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet")))
    job = store.get_historical_features(entity_rows(("EWR", 1), ("JFK", 1)), features=["weather:temp"])
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls saved datasets experimental
        saved = store.create_saved_dataset(job, "saved", storage)
        assert saved.to_df().sort_values("origin")["temp"].iloc[0] == 1.0
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            job.persist(storage)
        job.persist(storage, allow_overwrite=True)
    assert pl.read_parquet(tmp_path / "saved.parquet")["temp"].to_list() == [1.0, None]


def test_feasts_materialization_publishes_the_newest_row_of_the_range(
    store: feast.FeatureStore, tmp_path: Path
) -> None:
    """Both ends of the range are included; a tie goes to the row created last."""
    rows = weather(("EWR", 0, 1.0), ("EWR", 2, 3.0), ("EWR", 2, 2.0), ("EWR", 4, 9.0), created=[0, 4, 3, 0])
    rows.write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet", created_timestamp_column="created")))
    store.materialize(at(0), at(2))
    answer = store.get_online_features(features=["weather:temp"], entity_rows=[{"origin": "EWR"}]).to_dict()
    assert answer["temp"] == [3.0]


def test_rows_can_be_appended_to_a_file_and_to_a_directory(store: feast.FeatureStore, tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    weather(("EWR", 0, 1.0)).write_parquet(tmp_path / "lake" / "2013-03-10.parquet")
    weather(("EWR", 0, 1.0)).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source("lake"), "days"), view(source("weather.parquet"), "whole"))
    for name in ("days", "whole"):
        store.write_to_offline_store(name, weather(("EWR", 1, 2.0)).to_pandas())
        assert temps(store, entity_rows(("EWR", 1), ("EWR", 0)), f"{name}:temp") == [2.0, 1.0]


def test_an_empty_view_gives_nulls_of_its_type(store: feast.FeatureStore, tmp_path: Path) -> None:
    weather().write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet")))
    joined = store.get_historical_features(entity_rows(("EWR", 1)), features=["weather:temp"]).to_arrow()
    assert str(joined.schema.field("temp").type) == "double"
    assert joined["temp"].to_pylist() == [None]


@pytest.mark.parametrize("text", [False, True])
def test_a_time_without_a_zone_or_as_text_is_utc(store: feast.FeatureStore, tmp_path: Path, text: bool) -> None:
    naive = weather(("EWR", 0, 1.0)).with_columns(pl.col("event_timestamp").dt.replace_time_zone(None))
    naive.write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet")))
    rows = entity_rows(("EWR", 3), ("EWR", 3.5))
    times = rows["event_timestamp"].dt.tz_localize(None)
    assert temps(store, rows.assign(event_timestamp=times.astype(str) if text else times)) == [1.0, None]


def test_a_view_that_was_never_published_says_so(store: feast.FeatureStore, tmp_path: Path) -> None:
    from resources.polars_offline_store import EntityFrameError, SourceError

    register(store, view(source(tmp_path / "lake")))
    with pytest.raises(SourceError, match=r"no Parquet file at .*lake.*Materialize the asset"):
        store.get_historical_features(entity_rows(("EWR", 1)), features=["weather:temp"])
    weather(("EWR", 0, 1.0)).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet")))
    with pytest.raises(EntityFrameError, match=r"entity_df is a dict .*DataFrame"):
        store.get_historical_features({}, features=["weather:temp"])


hours = st.integers(0, 30)
origins = st.sampled_from(["EWR", "JFK", None])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.tuples(origins, hours, st.none() | st.floats(0, 9)), min_size=1),
    moments=st.lists(st.tuples(origins, hours), min_size=1),
    ttl=st.sampled_from([None, timedelta(hours=2)]),
)
def test_it_gives_what_brute_force_gives(
    store: feast.FeatureStore, tmp_path: Path, history: list[Any], moments: list[Any], ttl: timedelta | None
) -> None:
    """Of the key's rows within the ttl, the latest; of those of one time, the one created last."""
    created = [float(place) for place in range(len(history))]
    weather(*history, created=created).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet", created_timestamp_column="created"), ttl=ttl))

    def seen(origin: str | None, hour: int) -> float | None:
        candidates = [
            (when, place, temp)
            for place, (where, when, temp) in enumerate(history)
            if where == origin and origin and when <= hour and (ttl is None or hour - when <= 2)
        ]
        return max(candidates)[2] if candidates else None

    assert temps(store, entity_rows(*moments)) == [seen(*moment) for moment in moments]
