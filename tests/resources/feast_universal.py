"""Where Feast's own universal tests find our offline store: its data as a file, a directory, a Delta table, on S3.

`test_feast_universal` names this module to Feast's test suite, which imports it beside its own `tests` package.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from functools import cache
from io import BytesIO
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import pandas as pd
from feast import FileSource
from feast.data_format import DeltaFormat, FileFormat, ParquetFormat
from feast.feature_logging import LoggingDestination
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from tests.universal.feature_repos.universal.data_source_creator import DataSourceCreator

from resources.polars_offline_store import PolarsOfflineStoreConfig


class PolarsCreator(DataSourceCreator):
    """Data at a place of its own; every source has a name that a query can ask for."""

    file_format: FileFormat = ParquetFormat()
    endpoint: str | None = None

    def __init__(self, project_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(project_name)

    @abstractmethod
    def put(self, df: pd.DataFrame) -> str:
        """Write the rows, and say where."""

    def place(self) -> str:
        return mkdtemp(prefix="feast-universal-")

    def create_data_source(
        self,
        df: pd.DataFrame,
        destination_name: str,
        created_timestamp_column: str | None = "created_ts",
        field_mapping: dict[str, str] | None = None,
        timestamp_field: str | None = "ts",
    ) -> FileSource:
        # Feast's tests compare what they wrote with what they read, exactly: nothing may be rounded to 32 bits.
        df = df.astype(dict.fromkeys(df.select_dtypes("float32"), "float64"))
        source = FileSource(
            name=f"table_{uuid4().hex}",
            path=self.put(df),
            file_format=self.file_format,
            timestamp_field=timestamp_field,
            created_timestamp_column=created_timestamp_column or "",
            field_mapping=field_mapping or {"ts_1": "ts"},
            s3_endpoint_override=self.endpoint,
        )
        source.table = source.name  # tells Feast's tests that it can be queried
        return source

    def create_offline_store_config(self) -> PolarsOfflineStoreConfig:
        return PolarsOfflineStoreConfig()

    def create_saved_dataset_destination(self) -> SavedDatasetFileStorage:
        return SavedDatasetFileStorage(self.place(), self.file_format, self.endpoint)

    def create_logged_features_destination(self) -> LoggingDestination:
        return FileLoggingDestination(path=self.place(), s3_endpoint_override=self.endpoint or "")

    def teardown(self) -> None:
        """Everything lies below the test's own temporary directory."""


class OneFile(PolarsCreator):
    def put(self, df: pd.DataFrame) -> str:
        path = f"{self.place()}/rows.parquet"
        df.to_parquet(path)
        return path


class Slices(OneFile):
    """Joined in slices of a few rows."""

    def create_offline_store_config(self) -> PolarsOfflineStoreConfig:
        return PolarsOfflineStoreConfig(batch_rows=7)


class Directory(PolarsCreator):
    def put(self, df: pd.DataFrame) -> str:
        place = self.place()
        for number, start in enumerate(range(0, len(df), 100)):
            df.iloc[start : start + 100].to_parquet(f"{place}/{number:04}.parquet")
        return place


class Delta(PolarsCreator):
    file_format = DeltaFormat()

    def put(self, df: pd.DataFrame) -> str:
        from deltalake import write_deltalake

        place = self.place()
        write_deltalake(place, df)
        return place


@cache
def bucket() -> tuple[str, str]:
    """The endpoint of an S3 of our own, and the URL of a bucket in it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="universal")
    return f"http://{host}:{port}", "s3://universal"


class S3(PolarsCreator):
    def __init__(self, project_name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(project_name)
        self.endpoint, self._root = bucket()

    def place(self) -> str:
        return f"{self._root}/{uuid4().hex}"

    def put(self, df: pd.DataFrame) -> str:
        import boto3

        key, rows = f"{uuid4().hex}.parquet", BytesIO()
        df.to_parquet(rows)
        boto3.client("s3", endpoint_url=self.endpoint).put_object(Bucket="universal", Key=key, Body=rows.getvalue())
        return f"{self._root}/{key}"


AVAILABLE_OFFLINE_STORES = [("local", creator) for creator in (OneFile, Slices, Directory, Delta, S3)]
AVAILABLE_ONLINE_STORES = {"sqlite": ({"type": "sqlite"}, None)}

# Tests that ask for the file store, or take it by default, get ours as well.
repository = sys.modules["tests.universal.feature_repos.repo_configuration"]
repository.OFFLINE_STORE_TO_PROVIDER_CONFIG["file"] = ("local", OneFile)
sys.modules["tests.universal.feature_repos.universal.data_sources.file"].FileDataSourceCreator = OneFile
