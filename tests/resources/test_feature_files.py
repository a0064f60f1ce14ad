"""A source is one table, however its files lie; a reader sees all of a write or nothing, and errors name the file."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

if TYPE_CHECKING:
    import feast

ROWS = pl.DataFrame({"day": ["1", "1", "2"], "x": [1, 2, 3]})


@pytest.fixture
def config(tmp_path: Path) -> feast.RepoConfig:
    from feast import RepoConfig

    return RepoConfig(project="elsewhere", provider="local", registry=str(tmp_path / "registry.db"), repo_path=tmp_path)


def source(path: Path | str, *, delta: bool = False) -> feast.FileSource:
    from feast import FileSource
    from feast.data_format import DeltaFormat

    return FileSource(name="numbers", path=str(path), timestamp_field="t", file_format=DeltaFormat() if delta else None)


@pytest.fixture(params=["file", "directory", "delta", "s3 object", "s3 directory"])
def table(request: pytest.FixtureRequest, tmp_path: Path, config: feast.RepoConfig) -> feast.FileSource:
    """An empty place for a table, of every kind."""
    bucket = request.getfixturevalue("s3") if request.param.startswith("s3") else str(tmp_path)
    name = "lake" if "directory" in request.param or request.param == "delta" else "rows.parquet"
    return source(f"{bucket}/{name}", delta=request.param == "delta")


def held(of: feast.FileSource, config: feast.RepoConfig) -> list[int]:
    from resources.feature_files import scan

    return sorted(scan(of, config).collect()["x"].to_list())


def test_a_table_is_replaced_and_appended_to_wherever_it_lies(
    table: feast.FileSource, config: feast.RepoConfig
) -> None:
    """In batches too; what is replaced is gone, whatever its files were called."""
    from resources.feature_files import append, exists, replace

    assert not exists(table, config)
    replace(table, config, [ROWS.head(1), ROWS.tail(2)])
    append(table, config, ROWS.head(1))
    assert exists(table, config) and held(table, config) == [1, 1, 2, 3]
    if "://" not in table.path:
        replace(table, config, [ROWS.tail(1)])
        assert held(table, config) == [3]


def test_writers_of_one_file_lose_nothing_of_each_other(tmp_path: Path, config: feast.RepoConfig) -> None:
    from resources.feature_files import append

    ROWS.head(1).write_parquet(tmp_path / "rows.parquet")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: append(source("rows.parquet"), config, ROWS.tail(1)), range(20)))
    assert held(source("rows.parquet"), config) == [1, *[3] * 20]


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, config: feast.RepoConfig) -> None:
    from resources.feature_files import replace

    def breaking():
        yield ROWS
        raise RuntimeError("the disk is full")

    ROWS.head(1).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(RuntimeError):
        replace(source("rows.parquet"), config, breaking())
    assert held(source("rows.parquet"), config) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize("path", ["year=2013/lake", "year=2013/lake/day=*/*.parquet"])
def test_directories_of_values_are_columns(tmp_path: Path, config: feast.RepoConfig, path: str) -> None:
    """Rows are appended under their values; a directory above the table may be called anything."""
    from resources.feature_files import append, partition_columns, scan

    lake = tmp_path / "year=2013" / "lake"
    for day in (1, 2):
        (lake / f"day={day}").mkdir(parents=True)
        ROWS.filter(day=str(day)).drop("day").write_parquet(lake / f"day={day}" / "rows.parquet")
    assert scan(source(path), config).select("x", "day").sort("x").collect().rows() == [(1, 1), (2, 1), (3, 2)]
    whole = source("year=2013/lake")
    assert partition_columns(whole, config) == ["day"]
    append(whole, config, pl.DataFrame({"x": [4], "day": [3]}))
    assert held(whole, config) == [1, 2, 3, 4]
    assert len(list((lake / "day=3").glob("*.parquet"))) == 1


@pytest.mark.parametrize("name", [".rows.parquet.abc.tmp", ".rows.parquet", "_temporary/rows.parquet", "_rows.parquet"])
def test_what_somebody_is_still_writing_is_no_part_of_the_table(
    tmp_path: Path, config: feast.RepoConfig, name: str
) -> None:
    (tmp_path / "lake" / name).parent.mkdir(parents=True)
    ROWS.write_parquet(tmp_path / "lake" / "whole.parquet")
    (tmp_path / "lake" / name).write_bytes(b"PAR1 cut off")
    assert held(source("lake"), config) == [1, 2, 3]


def cut_off(path: Path) -> None:
    whole = path.with_name("whole.bytes")
    ROWS.write_parquet(whole)
    path.write_bytes(whole.read_bytes()[:100])
    whole.unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut_off, r"b\.parquet is no whole Parquet file .*write the file again"),
        (lambda path: path.write_bytes(b""), r"b\.parquet is no whole Parquet file"),
        (
            lambda path: ROWS.cast({"x": pl.String}).write_parquet(path),
            r"b\.parquet has another schema than .*a\.parquet \('x' is .*string.*, was int64\)",
        ),
        (lambda path: ROWS.with_columns(y=1).write_parquet(path), r"'y' is int32, was missing"),
        (lambda path: ROWS.drop("day").write_parquet(path), r"'day' is missing, was"),
    ],
    ids=["cut off", "empty", "another type", "another column", "a column less"],
)
def test_the_file_that_does_not_fit_is_named(
    tmp_path: Path, config: feast.RepoConfig, spoil: Callable[[Path], None], reason: str
) -> None:
    """When it is read: a source of a thousand files is not opened whole to be planned with."""
    from resources.feature_files import SourceError, explained, scan

    (tmp_path / "lake").mkdir()
    ROWS.write_parquet(tmp_path / "lake" / "a.parquet")
    spoil(tmp_path / "lake" / "b.parquet")
    with pytest.raises(SourceError, match=rf"Data source 'numbers'.*{reason}"), explained([source("lake")], config):
        scan(source("lake"), config).collect()


def test_only_file_sources_are_read() -> None:
    from feast import RequestSource

    from resources.feature_files import SourceError, file_source

    with pytest.raises(SourceError, match=r"'asked' is a RequestSource \(readable: FileSource\)"):
        file_source(RequestSource(name="asked", schema=[]))
    with pytest.raises(SourceError, match="None is a NoneType"):
        file_source(None)


def test_an_absent_table_on_s3_is_said_to_be_absent(s3: str, config: feast.RepoConfig) -> None:
    from resources.feature_files import SourceError, scan

    for path in (f"{s3}/nothing/", f"{s3}/nothing.parquet", f"{s3}/nothing/*.parquet"):
        with pytest.raises(SourceError, match=r"no table at s3://.*nothing.*Materialize"):
            scan(source(path), config)
