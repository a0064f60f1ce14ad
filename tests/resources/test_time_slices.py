"""The slices together are the join, and only a slice is ever in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from resources.point_in_time import ViewFrame, point_in_time_join
from resources.time_slices import join_in_slices, time_slices

START = datetime(2013, 3, 10, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")
MEGABYTE = 2**20

hours = st.integers(-6, 30).map(lambda hour: START + timedelta(hours=hour, microseconds=hour))
origins = st.sampled_from(["EWR", "JFK", None])


@st.composite
def histories(draw: st.DrawFn) -> ViewFrame:
    rows = draw(st.lists(st.tuples(origins, st.none() | hours, st.none() | hours, st.integers(0, 99)), max_size=30))
    schema = {"origin": pl.String, "seen": TIME, "created": TIME, "x": pl.Int64}
    frame = pl.LazyFrame(rows, schema=schema, orient="row")
    unit = draw(st.sampled_from(["ns", "us"]))
    return ViewFrame(
        frame.with_columns(pl.col("seen").dt.cast_time_unit(unit)),
        draw(st.sampled_from([{"origin": "origin"}, {}])),
        {"x": f"x{draw(st.uuids())}"},
        ttl=draw(st.sampled_from([None, timedelta(hours=3)])),
        event_timestamp="seen",
        created_timestamp=draw(st.sampled_from([None, "created"])),
    )


@st.composite
def spines(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.lists(st.tuples(origins, st.none() | hours), max_size=30))
    schema = {"origin": pl.String, "event_timestamp": TIME}
    return pl.DataFrame(rows, schema=schema, orient="row").with_row_index("label")


@settings(max_examples=100)
@given(moments=spines(), views=st.lists(histories(), max_size=2), rows=st.integers(1, 9), as_known=st.booleans())
def test_the_slices_together_are_the_join(
    moments: pl.DataFrame, views: list[ViewFrame], rows: int, as_known: bool
) -> None:
    """In the order of time, equals as they lie, null times last; in values, types and number of rows."""
    in_time = moments.sort("event_timestamp", nulls_last=True, maintain_order=True)
    whole = point_in_time_join(in_time.lazy(), views, as_known=as_known).collect()
    assert_frame_equal(pl.concat(join_in_slices(moments.lazy(), views, rows, as_known=as_known)), whole)


def history(rows: int, entities: int = 10, name: str = "x") -> ViewFrame:
    minutes = pl.int_range(rows, eager=True)
    frame = pl.LazyFrame(
        {
            "id": minutes % entities,
            "event_timestamp": pl.Series([START], dtype=TIME).first()
            + pl.select(pl.duration(minutes=minutes)).to_series(),
            name: minutes.cast(pl.Float64),
        }
    )
    return ViewFrame(frame, {"id": "id"}, {name: name})


@pytest.mark.parametrize("rows", [50, 400, 5000])
@pytest.mark.parametrize("dense", [False, True])
def test_no_slice_has_more_rows_than_asked_of_any_table(rows: int, dense: bool) -> None:
    """Where the moments of a table are many, also where nearly all are in its last day of thirty years.

    The spine here is a hundredth of the view.
    """
    view = history(4_000)
    if dense:
        long_ago = view.frame.head(1).with_columns(pl.col("event_timestamp") - timedelta(days=365 * 30))
        view = replace(view, frame=pl.concat([long_ago, view.frame]))
    spine = view.frame.gather_every(100).drop("x")
    slices = time_slices(spine, [view], rows, event_timestamp="event_timestamp", as_known=False)
    moment = pl.col("event_timestamp").dt.epoch("us")
    sizes = [
        view.frame.filter((moment > (span.after or -(2**60))) & (moment <= span.until))
        .select(pl.len())
        .collect()
        .item()
        for span in slices
    ]
    assert max(sizes) <= rows
    assert sum(sizes) == view.frame.filter(moment <= spine.select(moment.max()).collect().item()).collect().height
    assert len(slices) <= 2 * (4_000 // rows) + 1, "and they are not needlessly small"


def test_what_no_row_can_see_is_carried_no_further() -> None:
    """A spine without rows, or without times, gives its rows and types."""
    view = history(20)
    for rows in ([], [None]):
        spine = pl.LazyFrame({"id": [1] * len(rows), "event_timestamp": pl.Series(rows, dtype=TIME)})
        (only,) = join_in_slices(spine, [view], 5)
        assert_frame_equal(only, point_in_time_join(spine, [view]).collect())


PROGRAM = """
import json, re, resource, sys
from pathlib import Path
import polars as pl
from resources.point_in_time import ViewFrame, point_in_time_join
from resources.time_slices import join_in_slices

def peak_memory():
    # Linux counts what the parent held into its child's ru_maxrss.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

here, rows = Path(sys.argv[1]), int(sys.argv[2])
spine, held = pl.scan_parquet(here / "spine.parquet"), pl.scan_parquet(here / "view.parquet")
features = [name for name in held.collect_schema().names() if name.startswith("f")]
view = ViewFrame(held, {"id": "id"}, {name: name for name in features})
warm = point_in_time_join(spine.head(10), [ViewFrame(held.head(10), view.keys, view.features)]).collect()
before = peak_memory()
if rows:
    said = [(batch.height, batch.hash_rows().sum()) for batch in join_in_slices(spine, [view], rows)]
else:
    whole = point_in_time_join(spine, [view]).collect()
    said = [(whole.height, whole.hash_rows().sum())]
print(json.dumps({"peak": peak_memory() - before, "height": sum(height for height, _ in said),
                  "hash": sum(hash for _, hash in said) % 2**64, "batches": len(said)}))
"""


def measured(directory: Path, rows: int) -> dict[str, Any]:
    """What a fresh process says of a join of the tables in the directory, in slices of `rows` rows (0: whole)."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), str(rows)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(ended.stdout))


def test_peak_memory_is_bounded_by_the_setting_not_by_the_table(tmp_path: Path) -> None:
    """Twice the rows take twice the memory whole, and no more in slices; the rows are the same."""
    peaks = {}
    for millions in (1, 2):
        height = millions * 1_000_000
        minutes = pl.int_range(height, eager=True)
        times = pl.select(event_timestamp=pl.lit(START).cast(TIME) + pl.duration(seconds=minutes)).to_series()
        table = pl.DataFrame({"id": (minutes * 7919) % 1000, "event_timestamp": times})
        features = {f"f{number}": (minutes * (number + 3)).cast(pl.Float64) for number in range(16)}
        table.with_columns(**features).write_parquet(tmp_path / "view.parquet", row_group_size=50_000)
        table.write_parquet(tmp_path / "spine.parquet", row_group_size=50_000)
        whole, sliced = measured(tmp_path, 0), measured(tmp_path, 50_000)
        assert (sliced["height"], sliced["hash"]) == (whole["height"], whole["hash"]) and sliced["batches"] >= 20
        peaks[millions] = (whole["peak"], sliced["peak"])
    table_size = 2_000_000 * 16 * 8
    assert peaks[2][0] > 2 * table_size, "the whole table and what was joined"
    assert peaks[2][1] < table_size / 2
    assert peaks[2][1] < peaks[1][1] + 40 * MEGABYTE
