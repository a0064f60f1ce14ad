"""The point-in-time join on Spark against the one on Polars, on this machine, by the number of labels.

Both read the same Parquet files, labels and five views of the flights, and write the joined table to files; Spark on
`local[*]`, its session there before. Equal are the rows and their values, shown at the smallest size. Spark's reason to
be there is a table that one machine cannot hold: here it is only seen whether it is ahead before that, and from where.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from polars.testing import assert_frame_equal

from benchmarks.harness import Figure, Measurement, in_turn, seconds
from benchmarks.offline_store import View, tiled, written, year_of_labels
from benchmarks.training_set import YEAR
from resources.point_in_time import ViewFrame
from resources.point_in_time import point_in_time_join as polars_join

SIZES = (300_000, 1_000_000, 2_500_000, 5_000_000)
VIEWS, ROUNDS = 5, 3


def measure(sizes: Sequence[int] = SIZES, rounds: int = ROUNDS, views: int = VIEWS) -> Measurement:
    with TemporaryDirectory(prefix="mlops-benchmark-") as name:
        directory = Path(name)
        chosen, held = written(directory, YEAR)[:views], year_of_labels(YEAR)
        figures: list[Figure] = []
        for size in sizes:
            labels = directory / "labels.parquet"
            tiled(held, size).write_parquet(labels)
            sides = Sides(labels, chosen, directory)
            if not figures:
                sides.require_equal()
            spark, polars = in_turn(lambda: seconds(sides.on_spark), lambda: seconds(sides.on_polars), rounds)  # noqa: B023
            figures.append(Figure(f"spark.join.{size}", spark, polars, f"Polars, {size:,} labels, {views} views"))
    return Measurement(figures, [crossing(figures)])


def crossing(figures: Sequence[Figure]) -> str:
    """From how many labels on Spark is ahead, by the sizes that were measured."""
    ahead = [figure.name.rpartition(".")[2] for figure in figures if figure.ratio < 1]
    last = figures[-1].name.rpartition(".")[2]
    return f"Spark is ahead from {int(ahead[0]):,} labels on." if ahead else f"No crossing up to {int(last):,} labels."


class Sides:
    """The same join of the same files, on either engine."""

    def __init__(self, labels: Path, views: Sequence[View], directory: Path) -> None:
        self._labels, self._views, self._out = str(labels), views, directory

    def on_polars(self) -> None:
        frames = [replace(view, frame=pl.scan_parquet(view.name)) for view in self._frames()]
        polars_join(pl.scan_parquet(self._labels), frames).collect().write_parquet(self._out / "polars.parquet")

    def on_spark(self) -> None:
        from resources.spark import session
        from resources.spark.point_in_time import point_in_time_join

        read = session().read
        frames: list[Any] = [replace(view, frame=read.parquet(view.name)) for view in self._frames()]
        joined = point_in_time_join(read.parquet(self._labels), frames)
        joined.write.mode("overwrite").parquet(str(self._out / "spark.parquet"))

    def require_equal(self) -> None:
        """Raises AssertionError."""
        self.on_polars()
        self.on_spark()
        polars = pl.read_parquet(self._out / "polars.parquet")
        spark = pl.read_parquet(self._out / "spark.parquet" / "*.parquet").sort("label")
        assert_frame_equal(spark.cast(polars.schema), polars.sort("label"), check_exact=True)

    def _frames(self) -> list[ViewFrame]:
        """The views without their frames, named by where their files are."""
        return [
            ViewFrame(
                pl.LazyFrame(),
                keys={key: key for key in view.keys},
                features={name: name for name in view.features},
                ttl=view.ttl or None,
                name=view.path,
            )
            for view in self._views
        ]
