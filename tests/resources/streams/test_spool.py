"""The spool's files: torn lines, rotation, deletion, and offsets that are never given twice."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.streams.spool import Spool


def numbers(spool: Spool, limit: int = 1000) -> list[int]:
    return [orjson.loads(message.body)["n"] for message in spool.read(limit, 0.0)]


def segments(root: Path) -> list[Path]:
    return sorted((root / "t").glob("*.jsonl"))


@pytest.fixture
def root(tmp_path: Path, home: Path) -> Path:
    return tmp_path / "spool"


@pytest.mark.parametrize("cut", range(1, 9))
def test_an_append_that_was_cut_short_leaves_no_half_event(root: Path, cut: int) -> None:
    """A line without its end is not read, and the next append takes its place."""
    spool = Spool(root, "t", "g")
    spool.append([{"n": 1}, {"n": 2}])
    (path,) = segments(root)
    path.write_bytes(path.read_bytes()[:-cut])
    assert numbers(spool) == [1]
    spool.append([{"n": 3}])
    assert numbers(spool) == [1, 3]


def test_full_segments_are_followed_by_new_ones_and_deleted_when_every_group_is_done(root: Path) -> None:
    """Rotation loses nothing; deletion waits for the slowest group."""
    fast, slow = Spool(root, "t", "fast", segment_bytes=30), Spool(root, "t", "slow", segment_bytes=30)
    slow.append([{"n": 0}])
    slow.commit(slow.read(1, 0.0))
    for number in range(1, 20):
        fast.append([{"n": number}])
        fast.commit(fast.read(100, 0.0))
    assert len(segments(root)) == 5
    batch = slow.read(100, 0.0)
    assert [orjson.loads(message.body)["n"] for message in batch] == list(range(1, 20))
    slow.commit(batch)
    fast.append([{"n": 20}])
    assert len(segments(root)) == 1
    assert numbers(fast) == numbers(slow) == [20]


def test_an_offset_is_never_given_twice(root: Path) -> None:
    """What a power cut took from the disk after it was read and committed is not what comes after it."""
    spool = Spool(root, "t", "g")
    spool.append([{"n": 1}, {"n": 2}])
    spool.commit(spool.read(10, 0.0))
    segments(root)[0].write_bytes(b'{"n":1}\n')
    spool.append([{"n": 3}])
    assert numbers(spool) == [3]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 7)), max_size=30), st.integers(1, 60))
def test_every_event_is_read_once_whatever_the_segments_and_batches(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, int]], segment_bytes: int
) -> None:
    """Appends and committed reads of any sizes, through segments of any size, give the sequence that was appended."""
    root = tmp_path_factory.mktemp("spool")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLOPS_HOME", str(root / "home"))
        appended, seen = 0, []
        for appends, size in [*steps, (False, 1000)]:
            spool = Spool(root, "t", "g", segment_bytes)
            if appends:
                spool.append([{"n": number} for number in range(appended, appended + size)])
                appended += size
            else:
                batch = spool.read(size, 0.0)
                seen += [orjson.loads(message.body)["n"] for message in batch]
                spool.commit(batch)
            spool.close()
        assert seen == list(range(appended))
