"""Dagster is told what the stream changed: materializations without a run, with row counts, offsets and checks.

Told at a bounded rate, however fast events come. What is not told yet is written down before the batch is
committed (`<home>/ingest/<team>/<source>.untold.json`), so that a killed ingestor's successor tells it. A Dagster
that is down is told later; it never stops an event.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import orjson
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from mlops_assets.catalog import Catalog, Table, asset_key
from mlops_assets.claims import Claim, claims, time_of
from mlops_assets.declarations import FeatureView, Source
from mlops_assets.links import spec
from mlops_assets.links.online import online_key
from resources.environment import home, prepare_home
from resources.lake import UNPARTITIONED, Lake, split_by_window

if TYPE_CHECKING:
    import polars as pl

Untold = dict[str, list[str]]
TOGETHER = 64  # partitions that are held in memory at once


class Telling:
    """What Dagster does not know yet of one source and the views that read it."""

    def __init__(self, source: Source, catalog: Catalog, lake: Lake, every: float) -> None:
        self._catalog, self._lake, self._every = catalog, lake, every
        self._path = home() / "ingest" / source.team / f"{source.name}.untold.json"
        found: Untold = orjson.loads(self._path.read_bytes()) if self._path.exists() else {}
        self._untold = {name: partitions for name, partitions in found.items() if name in catalog.tables}
        self._next = time.monotonic() + every
        self._facts: dict[str, Any] = {}

    def note(self, changed: Mapping[str, list[str]], **facts: Any) -> None:
        """Remember the partitions that changed, by table; `facts` are shown with them."""
        self._facts |= facts
        for name, partitions in changed.items():
            self._untold[name] = sorted({*self._untold.get(name, ()), *partitions})
        self._write()

    def due(self) -> bool:
        return bool(self._untold) and time.monotonic() >= self._next

    def tell(self) -> str | None:
        """Report everything that is not told; returns what went wrong, to be tried again later."""
        from sqlalchemy.exc import SQLAlchemyError

        if not self._untold:
            return None
        try:
            prepare_home()
            with dg.DagsterInstance.get() as instance:
                for event in self.events():
                    instance.report_runless_asset_event(event)
        except (dg.DagsterError, SQLAlchemyError, OSError) as problem:
            return f"Dagster could not be told: {problem}"
        finally:
            self._next = time.monotonic() + self._every
        self._untold = {}
        self._write()
        return None

    def events(self) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
        """Sources before what reads them, so that no automation runs for what is up to date."""
        for name, partitions in self._untold.items():
            table, judged = self._catalog.tables[name], dict[str, Claim]()
            for start in range(0, len(partitions), TOGETHER):
                rows = self._rows(table, partitions[start : start + TOGETHER])
                yield from (self._materialization(table, partition, frame) for partition, frame in rows.items())
                _judge(table, rows, judged)
            yield from (_evaluation(table, claim) for claim in judged.values())
            if isinstance(table, FeatureView) and table.online:
                yield dg.AssetMaterialization(online_key(table), metadata=dict(self._facts))

    def _rows(self, table: Table, partitions: list[str]) -> dict[str, pl.DataFrame]:
        """The rows of those of the partitions that exist, read in one go."""
        key, definition = asset_key(table), table.partitions
        there = [name for name in partitions if self._lake.exists(key, name)]
        if not there or not isinstance(definition, dg.TimeWindowPartitionsDefinition):
            return {name: self._lake.scan(key, [name]).collect() for name in there}
        windows = {name: definition.time_window_for_partition_key(name) for name in there}
        return split_by_window(self._lake.scan(key, there).collect(), str(time_of(table)), windows, key)

    def _materialization(self, table: Table, partition: str, rows: pl.DataFrame) -> dg.AssetMaterialization:
        name = None if partition == UNPARTITIONED else partition
        path = dg.MetadataValue.path(str(self._lake.path(asset_key(table), name)))
        return dg.AssetMaterialization(
            asset_key(table),
            partition=name,
            metadata={"dagster/row_count": rows.height, "path": path, **self._facts},
            tags={DATA_VERSION_TAG: spec.data_version(rows).value},
        )

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(f".{os.getpid()}")
        beside.write_bytes(orjson.dumps(self._untold))
        os.replace(beside, self._path)


def _judge(table: Table, rows: Mapping[str, pl.DataFrame], judged: dict[str, Claim]) -> None:
    """Add the table's claims about these rows; one that failed before has failed."""
    import polars as pl

    for claim in claims(pl.concat(rows.values()), table) if rows else ():
        if claim.name not in judged or judged[claim.name].passed:
            judged[claim.name] = claim


def _evaluation(table: Table, claim: Claim) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key(table),
        claim.name,
        claim.passed,
        metadata=dict(claim.numbers),
        description=claim.reason,
        severity=dg.AssetCheckSeverity.ERROR if claim.blocking else dg.AssetCheckSeverity.WARN,
        blocking=claim.blocking,
    )
