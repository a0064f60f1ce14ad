"""A table is read as its writers wrote it, and whatever else claims to be one is refused at no cost."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from mlops_assets.serving.wire.arrow import read_arrow
from mlops_assets.serving.wire.problems import InvalidRequestError
from mlops_assets.serving.wire.raw import MAX_BODY, MAX_ROWS, Table

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
LONG = "a text that is longer than a view holds in place"
FRAME = pl.DataFrame(
    {
        "number": [1.5, None, float("nan")],
        "single": pl.Series([0.1, None, 2.0], dtype=pl.Float32),
        "whole": [2**63 - 1, None, -(2**63)],
        "small": pl.Series([255, None, 0], dtype=pl.UInt8),
        "truth": [True, None, False],
        "text": ["", None, LONG],
        "kind": pl.Series(["UA", None, LONG], dtype=pl.Categorical),
        "array": [[1.0, 2.0], None, [3.0, 4.0]],
        "fixed": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int32, 2)),
        "time": [NOON, None, NOON],
        "nothing": [None, None, None],
    }
)
READ: dict[str, list[Any]] = {
    "number": [1.5, None, None],
    "single": [0.10000000149011612, None, 2.0],
    "whole": [2**63 - 1, None, -(2**63)],
    "small": [255, None, 0],
    "truth": [True, None, False],
    "text": ["", None, LONG],
    "kind": ["UA", None, LONG],
    "array": [[1.0, 2.0], None, [3.0, 4.0]],
    "fixed": [[1.0, 2.0], None, [3.0, 4.0]],
    "time": [NOON.isoformat(), None, NOON.isoformat()],
    "nothing": [None, None, None],
}


def by_polars(frame: pl.DataFrame, **options: Any) -> bytes:
    body = BytesIO()
    frame.write_ipc_stream(body, **options)
    return body.getvalue()


def by_arrow(table: pa.Table, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    body = BytesIO()
    with pa.ipc.new_stream(body, table.schema, options=options) as writer:
        writer.write_table(table)
    return body.getvalue()


WRITERS = {
    "polars": lambda: by_polars(FRAME),
    "polars, as old readers take it": lambda: by_polars(FRAME, compat_level=pl.CompatLevel.oldest()),
    "polars, in parts": lambda: by_polars(pl.concat([FRAME[:1], FRAME[1:]], rechunk=False)),
    "arrow": lambda: by_arrow(FRAME.to_arrow()),
    "arrow, in parts": lambda: by_arrow(pa.Table.from_batches(FRAME.to_arrow().to_batches(max_chunksize=1))),
    "arrow, a slice": lambda: by_arrow(pa.concat_tables([FRAME.to_arrow()] * 3).slice(3, 3)),
    "arrow, old metadata": lambda: by_arrow(
        FRAME.to_arrow(), pa.ipc.IpcWriteOptions(metadata_version=pa.MetadataVersion.V4)
    ),
}


def values(table: Table) -> dict[str, list[Any]]:
    return {name: list(table.column(name)) for name in table.columns}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_a_table_is_read_as_it_was_written(writer: str) -> None:
    """Every type that a model can be asked, nulls too, in one batch or several; NaN is a missing number."""
    assert values(read_arrow(WRITERS[writer]())) == READ


def test_a_table_of_pandas_is_read() -> None:
    """Whose schema carries a long note of its own."""
    frame = FRAME.select("number", "kind", "truth").to_pandas()
    assert values(read_arrow(by_arrow(pa.Table.from_pandas(frame)))) == {
        name: READ[name] for name in ("number", "kind", "truth")
    }


def test_the_time_asked_about_is_metadata_or_a_column() -> None:
    """The same in every row; now where none is said."""
    table = FRAME.select("number").to_arrow()
    said = table.replace_schema_metadata({"at": "2013-04-01T08:00:00-04:00"})
    assert read_arrow(by_arrow(said)).at == NOON
    column = FRAME.select("number").with_columns(at=pl.lit(NOON))
    assert read_arrow(by_polars(column)).at == NOON and "at" not in read_arrow(by_polars(column)).columns
    text = FRAME.select("number").with_columns(at=pl.lit(NOON.isoformat()))
    assert read_arrow(by_polars(text)).at == NOON
    assert abs((read_arrow(by_arrow(table)).at - datetime.now(UTC)).total_seconds()) < 60


def refused(body: bytes) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read_arrow(body)
    return caught.value.problems[0].problem


@pytest.mark.parametrize(
    ("at", "problem"),
    [
        ([NOON, NOON, datetime(2014, 1, 1, tzinfo=UTC)], "more than one time"),
        ([None, None, None], "more than one time, or of none"),
        ([NOON.replace(tzinfo=None)] * 3, "a time without a zone"),
        (["noon"] * 3, "not a time"),
    ],
)
def test_a_time_that_is_none_or_several_is_refused(at: list[Any], problem: str) -> None:
    """A request asks about one moment."""
    assert problem in refused(by_polars(FRAME.select("number").with_columns(at=pl.Series(at))))


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (FRAME[:0], "no rows"),
        (pl.DataFrame({"at": [NOON]}), "no column but at"),
        (pl.DataFrame({"x": [1.0] * (MAX_ROWS + 1)}), f"{MAX_ROWS + 1} rows"),
        (pl.DataFrame({"x": [[1.0], [1.0, 2.0]]}), "several lengths"),
        (pl.DataFrame({"x": [["a"]]}), "lists of other things"),
        (pl.DataFrame({"x": [{"a": 1}]}), "no model reads"),
        (pl.DataFrame({"x": [b"a"]}), "no model reads"),
        (pl.DataFrame({"x": [2**63]}, schema={"x": pl.UInt64}), "beyond Int64"),
        (pl.DataFrame({"x": ["a"]}).select(pl.col("x").cast(pl.Categorical)), ""),
    ],
)
def test_a_table_that_no_model_reads_is_refused(frame: pl.DataFrame, problem: str) -> None:
    """With the reason."""
    if problem:
        assert problem in refused(by_polars(frame))
    else:
        assert values(read_arrow(by_polars(frame))) == {"x": ["a"]}


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_buffers_are_refused(compression: Any) -> None:
    """8 MiB of zeros in a few hundred bytes: what would come out is not bounded by what came in."""
    bomb = by_polars(pl.DataFrame({"x": pl.zeros(MAX_ROWS, eager=True)}), compression=compression)
    assert len(bomb) < 10_000 and "compressed" in refused(bomb)


def test_a_text_that_is_named_many_times_is_counted_each_time() -> None:
    """A dictionary of one long text, or views of it, would come out thousands of times longer than the body."""
    text = "x" * (MAX_BODY // 1000)
    frame = pl.DataFrame({"x": [text] * 2000})
    assert "bytes of text" in refused(by_polars(frame.select(pl.col("x").cast(pl.Categorical))))
    views = by_polars(pl.DataFrame({"x": [text]}).select(pl.col("x").gather([0] * 2000)))
    assert len(views) < 2 * len(text) + 100_000 and "bytes of text" in refused(views)


def test_columns_without_number_are_refused() -> None:
    """Each would cost time, whatever the rows."""
    assert "more than 2000" in refused(by_polars(pl.DataFrame({f"c{n}": [1.0] for n in range(2001)})))


def test_messages_without_number_are_refused() -> None:
    """A hundred batches of one row are no batch."""
    parts = pa.Table.from_batches(pa.table({"x": [1.0] * 100}).to_batches(max_chunksize=1))
    assert "more than 64" in refused(by_arrow(parts))


@pytest.fixture
def _little_memory() -> Iterator[None]:
    """What a broken message could make us allocate fails here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: PTH123, SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("writer", ["polars", "polars, as old readers take it", "arrow"])
def test_a_broken_stream_is_read_or_refused_and_nothing_else(writer: str) -> None:
    """Bytes changed, lengths made enormous, parts cut out: some thousand times, from a seed."""
    whole, draw = WRITERS[writer](), random.Random(7)
    enormous = [b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), (2**62).to_bytes(8, "little")]
    read = 0
    for _ in range(2000):
        body = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 8])):
            at, kind = draw.randrange(len(body)), draw.random()
            if kind < 0.6:
                body[at] = draw.randrange(256)
            elif kind < 0.9:
                body[at : at + 8] = draw.choice(enormous)
            else:
                del body[at : at + draw.randrange(1, 64)]
        try:
            values(read_arrow(bytes(body)))
            read += 1
        except InvalidRequestError:
            pass
    assert 0 < read < 2000


def test_a_stream_that_breaks_off_is_refused() -> None:
    """Anywhere; but for the mark at its end, which only says that no more comes."""
    whole = by_polars(FRAME.select("number"))
    assert all(refused(whole[:cut]) for cut in range(len(whole) - 8))
    assert values(read_arrow(whole[:-8])) == {"number": READ["number"]}
