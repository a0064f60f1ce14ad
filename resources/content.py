"""What a table's content is called: the same rows in the same order have the same name, whoever made them, and how."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

ROWS = 100_000  # that are in memory at once


def content(frames: Iterable[pl.DataFrame]) -> str:
    """The name of the table that the frames, at least one, are the pieces of, in order."""
    remaining = iter(frames)
    first = next(remaining)
    digest = hashlib.sha256(repr(first.schema).encode())
    for frame in chain([first], remaining):
        digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()[:16]


def content_of_files(paths: Sequence[str]) -> str:
    """The same of Parquet files, however large: they are read piece by piece."""
    return content(_pieces(paths))


def _pieces(paths: Sequence[str]) -> Iterator[pl.DataFrame]:
    import polars as pl

    for path in paths:
        options = None
        if path.startswith("s3://"):
            from resources.lake import s3_options

            options = s3_options()
        rows = pl.scan_parquet(path, glob=False, storage_options=options)
        yield pl.DataFrame(schema=rows.collect_schema())
        yield from rows.collect_batches(chunk_size=ROWS, maintain_order=True)
