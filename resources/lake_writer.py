"""Publishes a table of the lake in pieces, for one that no memory need hold: row group by row group, then at once.

A reader sees the old table or the new one, whole; a writer that breaks off leaves the old one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from resources.beside import beside

if TYPE_CHECKING:
    import polars as pl
    from upath import UPath

    from resources.lake import Key, Lake


class RowGroups:
    """Takes frames of one schema; each becomes a row group, so give some ten thousand rows at a time."""

    def __init__(self, place: Path, schema: pl.Schema) -> None:
        import polars as pl
        import pyarrow.parquet as pq

        self._plain = pl.CompatLevel.oldest()  # Parquet knows no views of strings
        self._writer: Any = pq.ParquetWriter(
            place, pl.DataFrame(schema=schema).to_arrow(compat_level=self._plain).schema, compression="zstd"
        )
        self.rows = 0

    def add(self, frame: pl.DataFrame) -> None:
        if frame.height:
            self._writer.write_table(frame.to_arrow(compat_level=self._plain))
            self.rows += frame.height

    def close(self) -> None:
        self._writer.close()


@contextmanager
def row_groups(lake: Lake, key: Key, partition: str, schema: pl.Schema) -> Iterator[RowGroups]:
    """What is added becomes the partition's table when the block is left without an error."""
    path = lake.path(key, partition)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _place(path) as place:
        groups = RowGroups(place, schema)
        try:
            yield groups
        finally:
            groups.close()


@contextmanager
def _place(path: UPath) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends well: beside it, or here where the lake is not on disk."""
    if path.protocol != "s3":
        with beside(Path(str(path))) as place:
            yield place
        return
    with TemporaryDirectory() as here:
        place = Path(here, path.name)
        yield place
        with place.open("rb") as whole, path.open("wb") as there:  # S3 shows it when it is closed
            shutil.copyfileobj(whole, there)
