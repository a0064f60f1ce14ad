"""Batch scoring: what a release says of many events, by the very stages that answer an endpoint's requests.

Which features, how old they may be, what stands in for them and what is computed from them is said by the release's
own plan, not by today's declaration, as for the endpoint. Rows go through in chunks, in order of time:

    <root>/<team>/<model>/<partition>/<key>/00000.parquet, ...    finished chunks of a run that is not finished

A chunk is there whole or not at all, and `key` is made of all that its rows depend on; so a run that was killed goes on
after its last chunk, and chunks of another release or of other data are deleted, never read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from mlops_assets.fields import Field
from resources.environment import home
from resources.releases import Variant

if TYPE_CHECKING:
    import polars as pl

    from mlops_assets.serving.bundle import Release
    from mlops_assets.serving.plan import FeaturePlan, ViewRead
    from resources.lake_writer import RowGroups
    from resources.point_in_time import ViewFrame

EVENT_TIMESTAMP = "event_timestamp"
LAYOUT = "1"  # of a chunk's rows; another number, and older chunks are not taken for this code's


class UndeclaredInputError(LookupError):
    """A release reads what no table of its model has any more."""

    @classmethod
    def of(cls, release: str, names: Sequence[str]) -> Self:
        return cls(
            f"{release} reads {', '.join(names)}, which its model does not declare any more. "
            "Train and release a candidate of the new declaration first."
        )


@dataclass(frozen=True)
class Scorer:
    """A release, and what of its answers is kept: `kept` columns of the events, `outputs` as they are declared."""

    release: Release
    variant: Variant
    key: str
    kept: Sequence[str]
    outputs: Mapping[str, Field]

    def scores(
        self, spine: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame], rows: int, after: datetime | None = None
    ) -> Iterator[pl.DataFrame]:
        """The scored events later than `after` in order of time, about `rows` at once, those of one moment together.

        `tables` are the views' rows by the names that online stores know them by (`<team>__<view>`), each with a
        column `event_timestamp`. Raises UndeclaredInputError, InputError.
        """
        for joined in joined_rows(self.release.plan, self.variant.release, spine, tables, rows, after):
            if joined.height:
                yield self.scored(joined)

    def schema(self, spine: pl.LazyFrame) -> pl.Schema:
        """The columns of a table of scores."""
        import polars as pl

        given = spine.collect_schema()
        kept: dict[str, pl.DataType] = {name: given[name] for name in self.kept}
        said: dict[str, pl.DataType] = {name: field.polars for name, field in self.outputs.items()}
        text = pl.String()
        return pl.Schema({**kept, "prediction": pl.Float64(), **said, "release": text, "version": text})

    def scored(self, joined: pl.DataFrame) -> pl.DataFrame:
        """The kept columns of rows that hold every input, with what the release says of each."""
        import polars as pl

        from mlops_assets.serving.answers import FrameInputs, Question
        from mlops_assets.serving.plan import EmptyStore
        from mlops_assets.serving.stages import answer

        inputs = FrameInputs(joined.select(self.release.plan.inputs))
        question = Question(datetime.now(UTC), joined[self.key].cast(pl.String).to_list(), {}, given=inputs)
        said = answer(self.release, self.variant, question, EmptyStore())
        return joined.select(self.kept).with_columns(
            pl.Series("prediction", said.predictions, pl.Float64),
            *(self._output(name, meaning, said.outputs) for name, meaning in self.outputs.items()),
            release=pl.lit(self.variant.release),
            version=pl.lit(self.variant.version),
        )

    def _output(self, name: str, meaning: Field, outputs: Mapping[str, Sequence[Any]]) -> pl.Series | pl.Expr:
        """A declared output; null where the release does not say it (yet, or any more)."""
        import polars as pl

        made = self.release.outputs
        if name in made and made[name].dtype == meaning.dtype:
            return pl.Series(name, outputs[name], meaning.polars)
        return pl.lit(None, meaning.polars).alias(name)


def joined_rows(
    plan: FeaturePlan,
    release: str,
    spine: pl.LazyFrame,
    tables: Mapping[str, pl.LazyFrame],
    rows: int,
    after: datetime | None = None,
) -> Iterator[pl.DataFrame]:
    """The events with every input of a plan as of each event's time, some at once; see `Scorer.scores`."""
    import polars as pl

    from resources.time_slices import join_in_slices

    _refuse_undeclared(plan, release, spine, tables)
    events = spine if after is None else spine.filter(pl.col(EVENT_TIMESTAMP) > after)
    frames = [frame for place, view in enumerate(plan.views) for frame in _view_frames(place, view, tables)]
    for joined in join_in_slices(events, frames, rows):
        yield _completed(plan, joined.lazy()).collect()


def _refuse_undeclared(
    plan: FeaturePlan, release: str, spine: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame]
) -> None:
    given = set(spine.collect_schema())
    missing = [name for name in (*plan.join_keys, *(field.name for field in plan.request)) if name not in given]
    for view in plan.views:
        held = set(tables[view.table].collect_schema()) if view.table in tables else set()
        missing += [name for name in view.features if name not in held]
        if view.cold_start_table and view.cold_start_table not in tables:
            missing.append(view.cold_start_table)
    if missing:
        raise UndeclaredInputError.of(release, missing)


def _view_frames(place: int, view: ViewRead, tables: Mapping[str, pl.LazyFrame]) -> Iterator[ViewFrame]:
    """A view as the plan reads it, and what stands in for it."""
    from resources.point_in_time import ViewFrame

    names = {name: name for name in view.features}
    ttl = None if view.ttl_seconds is None else timedelta(seconds=view.ttl_seconds)
    keys = {name: name for name in view.join_keys}
    yield ViewFrame(tables[view.table], keys, names, ttl, matched_at=_seen(place), name=view.view)
    if view.cold_start_table:
        stand_ins = {name: _stand_in(place, name) for name in names}
        yield ViewFrame(tables[view.cold_start_table], {}, stand_ins, name=view.cold_start_table)


def _completed(plan: FeaturePlan, joined: pl.LazyFrame) -> pl.LazyFrame:
    """The joined rows with stand-ins where a view showed no row, and with what is computed on demand."""
    import polars as pl

    types = joined.collect_schema()
    for place, view in enumerate(plan.views):
        cold = pl.col(_seen(place)).is_null()
        if view.cold_start_values is not None:
            instead = {n: pl.lit(view.cold_start_values.get(n), types[n]) for n in view.features}
        elif view.cold_start_table:
            instead = {name: pl.col(_stand_in(place, name)) for name in view.features}
        else:
            continue
        joined = joined.with_columns(
            pl.when(cold).then(value).otherwise(name).alias(name) for name, value in instead.items()
        )
    for transform in plan.transforms:
        joined = joined.with_columns(transform.expressions)
    return joined


def _seen(place: int) -> str:
    return f"__seen_{place}"


def _stand_in(place: int, feature: str) -> str:
    return f"__stand_in_{place}_{feature}"


def key_of(parts: Sequence[str], files: Sequence[Any]) -> str:
    """The name of what is made of these words and of the contents of these files, whatever they are called.

    `files` are opened with `open("rb")`, on disk or in a bucket.
    """
    digest = hashlib.sha256(repr([LAYOUT, *parts]).encode())
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Chunks:
    """The finished chunks of one partition of one model, for one writer at a time."""

    directory: Path

    @classmethod
    @contextmanager
    def of(cls, model: str, partition: str, key: str) -> Iterator[Self]:
        """Those under `key`; others of the partition are deleted. Nothing is left when the block ends without error."""
        from filelock import FileLock

        place = home() / "work" / "scores" / model / partition
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{partition}.lock")):
            place.mkdir(exist_ok=True)
            for other in place.iterdir():
                if other.name != key:
                    shutil.rmtree(other)
            yield cls(place / key)
            shutil.rmtree(place)

    @property
    def finished(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.parquet"))

    @property
    def until(self) -> datetime | None:
        """The last moment that is finished."""
        import polars as pl

        if not self.finished:
            return None
        last: datetime = pl.scan_parquet(self.finished[-1]).select(pl.max(EVENT_TIMESTAMP)).collect().item()
        return last

    def keep(self, frame: pl.DataFrame) -> None:
        """Add a chunk; what is there after a kill was written to the end."""
        self.directory.mkdir(parents=True, exist_ok=True)
        beside = self.directory / f"{uuid4().hex}.tmp"
        frame.write_parquet(beside)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.rename(self.directory / f"{len(self.finished):05d}.parquet")

    def read(self, rows: int) -> Iterator[pl.DataFrame]:
        """All rows, `rows` at once (the last fewer), wherever a run broke off: the same table for the same rows."""
        import polars as pl

        if not self.finished:
            return
        table = pl.scan_parquet(self.finished)
        for start in range(0, table.select(pl.len()).collect().item(), rows):
            yield table.slice(start, rows).collect()


@dataclass
class Told:
    """What is known of a table of scores after its rows went by; `version` depends on the rows alone."""

    rows: int = 0
    finite: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, frame: pl.DataFrame) -> None:
        said = frame["prediction"].filter(frame["prediction"].is_finite())
        self.rows += frame.height
        self.finite += said.len()
        if said.len():
            self.lowest = min(self.lowest, float(said.to_numpy().min()))
            self.highest = max(self.highest, float(said.to_numpy().max()))
        self.digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())

    @property
    def version(self) -> str:
        return str(self.digest.hexdigest()[:16])


def write(chunks: Chunks, table: RowGroups, rows: int) -> Told:
    """All finished chunks as row groups of `rows`."""
    told = Told()
    for frame in chunks.read(rows):
        table.add(frame)
        told.add(frame)
    return told
