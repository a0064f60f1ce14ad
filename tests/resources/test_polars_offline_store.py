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


@pytest.fixture
def sliced(store: feast.FeatureStore, tmp_path: Path) -> feast.FeatureStore:
    """The same repository, with batches of ten rows."""
    from feast import FeatureStore

    config = store.config.model_copy(deep=True)
    config.offline_store.batch_rows = 10
    return FeatureStore(config=config)


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


@pytest.mark.parametrize("mode", ["pandas", "python"])
def test_an_on_demand_view_is_computed_on_what_was_joined(
    store: feast.FeatureStore, sliced: feast.FeatureStore, tmp_path: Path, mode: str
) -> None:
    """From what was joined and what the entity rows bring; whole and in batches."""
    from feast import Field, RequestSource
    from feast.on_demand_feature_view import OnDemandFeatureView
    from feast.transformation.pandas_transformation import PandasTransformation
    from feast.transformation.python_transformation import PythonTransformation
    from feast.types import Float64

    weather(("EWR", 0, 50.0)).write_parquet(tmp_path / "weather.parquet")
    here = view(source(tmp_path / "weather.parquet"), ttl=None)

    def frame(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"celsius": (inputs["temp"] - 32) / 1.8 + inputs["shift"]})

    def columns(inputs: dict[str, list[float]]) -> dict[str, list[float]]:
        return {
            "celsius": [(temp - 32) / 1.8 + shift for temp, shift in zip(inputs["temp"], inputs["shift"], strict=True)]
        }

    of = {"pandas": PandasTransformation(frame, "frame"), "python": PythonTransformation(columns, "columns")}
    on_demand = OnDemandFeatureView(
        name="metric",
        sources=[here, RequestSource(name="asked", schema=[Field(name="shift", dtype=Float64)])],
        schema=[Field(name="celsius", dtype=Float64)],
        feature_transformation=of[mode],
        mode=mode,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Feast calls on-demand views experimental
        register(store, here, on_demand)
    rows = entity_rows(*[("EWR", hour) for hour in range(1, 31)]).assign(shift=[float(hour) for hour in range(30)])
    features = ["weather:temp", "metric:celsius"]
    joined = store.get_historical_features(rows, features=features).to_df()
    assert joined[["temp", "celsius"]].to_numpy().tolist() == [[50.0, 10.0 + hour] for hour in range(30)]
    sliced.refresh_registry()
    batches = list(sliced.get_historical_features(rows, features=features).to_arrow_batches())
    assert len(batches) == 3
    assert [value for batch in batches for value in batch["celsius"].to_pylist()] == [10.0 + hour for hour in range(30)]


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
    with pytest.raises(SourceError, match=r"no table at .*lake.*Materialize the asset"):
        store.get_historical_features(entity_rows(("EWR", 1)), features=["weather:temp"])
    weather(("EWR", 0, 1.0)).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source(tmp_path / "weather.parquet")))
    with pytest.raises(EntityFrameError, match=r"entity_df is a dict .*DataFrame"):
        store.get_historical_features({}, features=["weather:temp"])


def hourly(count: int) -> pl.DataFrame:
    return weather(*[("EWR" if hour % 2 else "JFK", hour, float(hour)) for hour in range(count)])


@pytest.mark.parametrize("form", ["Polars", "lazy", "Arrow", "query of a view", "query of a source"])
def test_entity_rows_come_in_any_form(store: feast.FeatureStore, tmp_path: Path, form: str) -> None:
    """As a table, or as a query over the registry's views and sources, under the names that its mapping gives."""
    hourly(9).rename({"temp": "t"}).write_parquet(tmp_path / "weather.parquet")
    named = feast_source("readings", tmp_path / "weather.parquet", field_mapping={"t": "temp"})
    register(store, view(named))
    rows = pl.DataFrame(entity_rows(("EWR", 2), ("JFK", 7), ("EWR", 8)))
    query = "SELECT origin, event_timestamp FROM {} WHERE temp >= 7 ORDER BY temp"
    given: Any = {
        "Polars": rows,
        "lazy": rows.lazy(),
        "Arrow": rows.to_arrow(),
        "query of a view": query.format("weather"),
        "query of a source": query.format("readings"),
    }[form]
    job = store.get_historical_features(given, features=["weather:temp"])
    assert job.to_df()["temp"].to_list() == ([7.0, 8.0] if "query" in form else [1.0, 6.0, 7.0])
    assert job.metadata.keys == ["origin"]
    assert job.metadata.max_event_timestamp == at(8)


def feast_source(name: str, path: Path, **options: Any) -> feast.FileSource:
    from feast import FileSource

    return FileSource(name=name, path=str(path), timestamp_field="event_timestamp", **options)


def test_a_query_that_cannot_be_run_says_what_there_is(store: feast.FeatureStore, tmp_path: Path) -> None:
    from resources.polars_offline_store import EntityFrameError

    hourly(1).write_parquet(tmp_path / "weather.parquet")
    register(store, view(feast_source("readings", tmp_path / "weather.parquet")))
    with pytest.raises(EntityFrameError, match=r"cannot be run: .*wether.*\(tables: readings, weather\)"):
        store.get_historical_features("SELECT * FROM wether", features=["weather:temp"])


def test_without_entity_rows_every_moment_of_every_key_is_given(store: feast.FeatureStore, tmp_path: Path) -> None:
    """From the first to the last date, both included; of several views each as of the others' moments."""
    weather(("EWR", 0, 0.0), ("EWR", 2, 2.0), ("EWR", 2, 2.5), (None, 2, 9.0), ("JFK", 9, 9.0)).write_parquet(
        tmp_path / "a.parquet"
    )
    weather(("EWR", 3, 30.0), ("JFK", 1, 10.0)).rename({"temp": "wind"}).write_parquet(tmp_path / "b.parquet")
    register(store, view(source("a.parquet")), view(source("b.parquet"), "winds", feature="wind"))
    span = {"start_date": at(1), "end_date": at(3)}
    job = store.get_historical_features(features=["weather:temp", "winds:wind"], **span)
    joined = pl.DataFrame(job.to_arrow())
    assert joined.select("event_timestamp", "origin").rows() == [(at(1), "JFK"), (at(2), "EWR"), (at(3), "EWR")]
    assert joined.select("temp", "wind").rows() == [(None, 10.0), (2.5, None), (2.5, 30.0)]
    assert (job.metadata.min_event_timestamp, job.metadata.keys) == (at(1), ["origin"])
    nothing = store.get_historical_features(features=["weather:temp"], start_date=at(50), end_date=at(60)).to_df()
    assert nothing.empty and list(nothing.columns) == ["event_timestamp", "origin", "temp"]


def test_a_view_for_everyone_needs_no_key(store: feast.FeatureStore, tmp_path: Path) -> None:
    """With entity rows, without, and published online."""
    from feast import FeatureView, Field
    from feast.types import Float64

    weather(("EWR", 0, 1.0), ("EWR", 2, 2.0)).drop("origin").write_parquet(tmp_path / "all.parquet")
    everywhere = FeatureView(
        name="everywhere",
        entities=[],
        ttl=timedelta(0),
        schema=[Field(name="temp", dtype=Float64)],
        source=source("all.parquet"),
    )
    register(store, everywhere)
    assert temps(store, entity_rows((None, 1), ("X", 3), ("X", -1)), "everywhere:temp") == [1.0, 2.0, None]
    alone = store.get_historical_features(features=["everywhere:temp"], start_date=at(0), end_date=at(9)).to_df()
    assert alone["temp"].to_list() == [1.0, 2.0]
    store.materialize(at(0), at(9))
    answer = store.get_online_features(features=["everywhere:temp"], entity_rows=[{"origin": "EWR"}])
    assert answer.to_dict()["temp"] == [2.0]


def test_every_kind_of_value_comes_back_as_it_was_written(store: feast.FeatureStore, tmp_path: Path) -> None:
    """Texts, bytes, lists, fixed arrays, maps, structs, times; the null among them; offline and published online."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from feast import Entity, FeatureView, Field, types
    from feast.value_type import ValueType

    kinds: dict[str, tuple[Any, pa.DataType, Any]] = {
        "truth": (types.Bool, pa.bool_(), True),
        "small": (types.Int32, pa.int32(), -7),
        "single": (types.Float32, pa.float32(), 0.5),
        "word": (types.String, pa.string(), "wörd"),
        "category": (types.String, pa.dictionary(pa.int32(), pa.string()), "red"),
        "raw": (types.Bytes, pa.binary(), b"\x00\xff"),
        "moment": (types.UnixTimestamp, pa.timestamp("us", "UTC"), START),
        "words": (types.Array(types.String), pa.list_(pa.string()), ["a", ""]),
        "numbers": (types.Array(types.Int64), pa.list_(pa.int64()), [1, 2]),
        "vector": (types.Array(types.Float64), pa.list_(pa.float64(), 2), [0.25, 0.5]),
        "mapping": (types.Map, pa.map_(pa.string(), pa.string()), [("k", "v")]),
        "struct": (types.Struct({"a": types.String}), pa.struct({"a": pa.string()}), {"a": "x"}),
    }
    columns = {name: pa.array([value, None], kind) for name, (_, kind, value) in kinds.items()}
    times = pa.array([at(0), at(0)], pa.timestamp("ns", "UTC"))
    pq.write_table(pa.table({"origin": ["EWR", "JFK"], "event_timestamp": times, **columns}), tmp_path / "all.parquet")
    published = [name for name in kinds if name not in ("mapping", "struct", "moment")]

    def of(name: str, features: Sequence[str]) -> feast.FeatureView:
        fields = [Field(name=feature, dtype=kinds[feature][0]) for feature in features]
        airport = Entity(name="airport", join_keys=["origin"], value_type=ValueType.STRING)
        schema = [Field(name="origin", dtype=types.String), *fields]
        return FeatureView(name=name, entities=[airport], schema=schema, source=source("all.parquet"))

    register(store, of("kinds", list(kinds)), of("online", published))
    refs = [f"kinds:{name}" for name in kinds]
    joined = store.get_historical_features(entity_rows(("EWR", 1), ("JFK", 1), ("LGA", 1)), features=refs).to_arrow()
    for name, (_, kind, value) in kinds.items():
        assert joined[name].to_pylist() == [value, None, None], name
        assert name in ("category", "vector") or joined.schema.field(name).type == kind, name
    store.materialize(at(-1), at(1), feature_views=["online"])  # Feast's own writer knows no maps
    asked = [f"online:{name}" for name in published]
    online = store.get_online_features(features=asked, entity_rows=[{"origin": "EWR"}]).to_dict()
    assert {name: online[name][0] for name in published} == {name: kinds[name][2] for name in published}


@pytest.mark.parametrize("as_path", [True, False])
def test_logged_features_are_kept_and_found_again(store: feast.FeatureStore, tmp_path: Path, as_path: bool) -> None:
    """Appended by day, as many times as they are flushed."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from feast import FeatureService
    from feast.feature_logging import LOG_DATE_FIELD, LOG_TIMESTAMP_FIELD, FeatureServiceLoggingSource, LoggingConfig
    from feast.infra.offline_stores.file_source import FileLoggingDestination

    hourly(1).write_parquet(tmp_path / "weather.parquet")
    here = view(source("weather.parquet"))
    register(store, here)
    destination = FileLoggingDestination(path="logs", partition_by=[LOG_DATE_FIELD])
    service = FeatureService(name="asked", features=[here], logging_config=LoggingConfig(destination=destination))
    store.apply([service])
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    for number in (0, 1):
        said = {LOG_TIMESTAMP_FIELD: at(24 * number), LOG_DATE_FIELD: at(24 * number).date(), "origin": "EWR"}
        logged = pa.Table.from_pylist([{**dict.fromkeys(schema.names), **said}], schema=schema)
        if as_path:
            (tmp_path / "buffer").mkdir(exist_ok=True)
            pq.write_table(logged, tmp_path / "buffer" / "0.parquet")
        store.write_logged_features(tmp_path / "buffer" if as_path else logged, service)
    span = {"start_date": at(0), "end_date": at(48), "config": store.config, "registry": store.registry}
    found = store._get_provider().retrieve_feature_service_logs(feature_service=service, **span).to_df()
    assert sorted(found[LOG_TIMESTAMP_FIELD].dt.day) == [10, 11]
    assert len(list((tmp_path / "logs").iterdir())) == 2


def test_batches_are_the_rows_in_order_of_time(
    store: feast.FeatureStore, sliced: feast.FeatureStore, tmp_path: Path
) -> None:
    """Whole, in the order given; saved, as one file in batches; pulled, too."""
    import pyarrow.parquet as pq
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    hourly(100).write_parquet(tmp_path / "weather.parquet")
    register(store, view(source("weather.parquet")))
    rows = entity_rows(*[("EWR" if hour % 3 else "JFK", (hour * 37) % 100) for hour in range(100)])
    asked: dict[str, Any] = {"features": ["weather:temp"]}
    whole = store.get_historical_features(rows, **asked).to_df()
    job = sliced.get_historical_features(rows, **asked)
    pd.testing.assert_frame_equal(job.to_df(), whole)
    in_time = whole.sort_values("event_timestamp").reset_index(drop=True)
    batches = [batch.to_pandas() for batch in job.to_arrow_batches()]
    assert len(batches) >= 10 and max(map(len, batches)) <= 10
    pd.testing.assert_frame_equal(pd.concat(batches, ignore_index=True), in_time)
    job.persist(SavedDatasetFileStorage(path=str(tmp_path / "saved")))
    saved = pq.ParquetFile(tmp_path / "saved" / "part-0.parquet")
    assert saved.num_row_groups == len(batches)
    assert saved.read()["temp"].to_pylist() == [None if pd.isna(temp) else temp for temp in in_time["temp"]]
    pulled = sliced._get_provider().offline_store.pull_all_from_table_or_query(
        sliced.config, source("weather.parquet"), ["origin"], ["temp"], "event_timestamp"
    )
    assert [len(batch) for batch in pulled.to_arrow_batches()] == [10] * 10


def test_batches_of_nothing_are_one_table_without_rows(sliced: feast.FeatureStore, tmp_path: Path) -> None:
    weather().write_parquet(tmp_path / "weather.parquet")
    register(sliced, view(source("weather.parquet")))
    (only,) = sliced.get_historical_features(entity_rows(), features=["weather:temp"]).to_arrow_batches()
    assert only.column_names == ["origin", "event_timestamp", "temp"] and only.num_rows == 0
    job = sliced._get_provider().offline_store.pull_all_from_table_or_query(
        sliced.config, source("weather.parquet"), ["origin"], ["temp"], "event_timestamp"
    )
    assert [batch.num_rows for batch in job.to_arrow_batches()] == [0]


def test_any_repository_can_name_the_store(tmp_path: Path) -> None:
    """Feast reads the configuration; a setting that is no number of rows is refused."""
    from feast import FeatureStore
    from feast.repo_config import FeastConfigError

    named = """
project: elsewhere
provider: local
registry: registry.db
entity_key_serialization_version: 3
offline_store:
  type: resources.polars_offline_store.PolarsOfflineStore
  batch_rows: {}
"""
    (tmp_path / "feature_store.yaml").write_text(named.format(500_000))
    assert FeatureStore(repo_path=str(tmp_path)).config.offline_store.batch_rows == 500_000
    (tmp_path / "feature_store.yaml").write_text(named.format(0))
    with pytest.raises(FeastConfigError, match="batch_rows"):
        _ = FeatureStore(repo_path=str(tmp_path)).config.offline_store


def test_what_does_not_fit_together_is_said_before_anything_is_read(store: feast.FeatureStore, tmp_path: Path) -> None:
    """Views and features that are not there, keys and times that are missing or of another type."""
    from feast.errors import FeatureViewNotFoundException

    from resources.point_in_time import KeyTypeError, MissingColumnError
    from resources.polars_offline_store import EntityFrameError

    hourly(2).write_parquet(tmp_path / "weather.parquet")
    hourly(2).rename({"event_timestamp": "seen", "temp": "wind"}).write_parquet(tmp_path / "timeless.parquet")
    register(
        store,
        view(source("weather.parquet")),
        view(source("weather.parquet"), "promised", feature="wind"),
        view(source("timeless.parquet"), "timeless", feature="wind"),
    )
    rows = entity_rows(("EWR", 1))

    def ask(features: str, given: pd.DataFrame) -> Any:
        return store.get_historical_features(given, features=[features])

    with pytest.raises(FeatureViewNotFoundException, match="wether"):
        ask("wether:temp", rows)
    with pytest.raises(KeyError, match="rain"):
        ask("weather:rain", rows)
    with pytest.raises(MissingColumnError, match=r"feature view 'promised' has no column wind \(it has: origin, "):
        ask("promised:wind", rows)
    with pytest.raises(MissingColumnError, match=r"feature view 'timeless' has no column event_timestamp"):
        ask("timeless:wind", rows)
    with pytest.raises(MissingColumnError, match=r"The spine has no column origin \(it has: event_timestamp\)"):
        ask("weather:temp", rows.drop(columns="origin"))
    with pytest.raises(KeyTypeError, match=r"key 'origin' is String .* 'origin' is Int64"):
        ask("weather:temp", rows.assign(origin=1))
    with pytest.raises(EntityFrameError, match=r"no column 'event_timestamp', and not one time but a, b"):
        ask(
            "weather:temp",
            rows.assign(a=rows["event_timestamp"], b=rows["event_timestamp"]).drop(columns="event_timestamp"),
        )
    with pytest.raises(MissingColumnError, match=r"The data source .* has no column event_timestamp"):
        store.materialize(at(0), at(1), feature_views=["timeless"])


def test_a_broken_file_is_named_when_it_is_read(store: feast.FeatureStore, tmp_path: Path) -> None:
    from resources.feature_files import SourceError

    (tmp_path / "lake").mkdir()
    hourly(3).write_parquet(tmp_path / "lake" / "a.parquet")
    (tmp_path / "lake" / "b.parquet").write_bytes((tmp_path / "lake" / "a.parquet").read_bytes()[:200])
    register(store, view(source("lake")))
    job = store.get_historical_features(entity_rows(("EWR", 1)), features=["weather:temp"])
    with pytest.raises(SourceError, match=r"b\.parquet is no whole Parquet file"):
        job.to_df()
    with pytest.raises(SourceError, match=r"b\.parquet is no whole Parquet file"):
        store.materialize(at(0), at(1))


def test_s3_and_delta_hold_views_and_what_was_joined(store: feast.FeatureStore, s3: str, tmp_path: Path) -> None:
    from feast.data_format import DeltaFormat, ParquetFormat
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    from resources.feature_files import scan

    hourly(4).write_parquet(f"{s3}/lake/2013-03-10.parquet")
    hourly(4).write_delta(tmp_path / "delta")
    delta = source("delta", file_format=DeltaFormat())
    register(store, view(source(f"{s3}/lake"), "there"), view(delta, "here"))
    rows = entity_rows(("EWR", 3), ("JFK", 3))
    for name in ("there", "here"):
        assert temps(store, rows, f"{name}:temp") == [3.0, 2.0]
        store.write_to_offline_store(name, weather(("EWR", 3, 9.0)).with_columns(created=at(5)).to_pandas())
        assert temps(store, entity_rows(("JFK", 3)), f"{name}:temp") == [2.0]
        job = store.get_historical_features(rows, features=[f"{name}:temp"])
        kind = DeltaFormat() if name == "here" else ParquetFormat()
        storage = SavedDatasetFileStorage(f"{s3}/saved-{name}", kind)
        job.persist(storage)
        saved = scan(storage.to_data_source(), store.config).collect()
        assert saved["temp"].to_list()[1] == 2.0


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
