"""Files by hash: each content once, never half, never lost, and collected only when nothing links to it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resources.artifacts.manifest import file_hash
from resources.artifacts.objects import ObjectStore

WRITE_FOREVER = """
import sys
from pathlib import Path
from resources.artifacts.objects import ObjectStore
store, source = ObjectStore(Path(sys.argv[1])), Path(sys.argv[2])
print("ready", flush=True)
number = 0
while True:
    source.write_bytes(number.to_bytes(8, "little") * 400_000)
    store.place(source, Path(sys.argv[3], str(number)))
    number += 1
"""


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


def file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def objects(store: ObjectStore) -> list[Path]:
    return list(store.root.glob("??/*"))


def test_the_same_content_is_stored_once(store: ObjectStore, tmp_path: Path) -> None:
    """Under any names, by many writers at once; the names are plain files, and nobody may write to them."""
    sources = [file(tmp_path / f"source{number}", b"model" * 100_000) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        hashes = set(pool.map(lambda source: store.place(source, tmp_path / "to" / source.name), sources))
    (kept,) = objects(store)
    assert hashes == {kept.name} == {file_hash(sources[0])}
    assert kept.stat().st_nlink == 9 and kept.stat().st_mode & 0o777 == 0o444
    usage = store.usage()
    assert (usage.objects, usage.stored_bytes, usage.links, usage.linked_bytes) == (1, 500_000, 8, 4_000_000)
    assert not list((store.root / "incoming").iterdir())


def test_the_source_is_the_caller_s_own(store: ObjectStore, tmp_path: Path) -> None:
    """What happens to it later changes nothing that was stored."""
    source = file(tmp_path / "source", b"as it was")
    store.place(source, tmp_path / "target")
    source.write_bytes(b"changed")
    assert (tmp_path / "target").read_bytes() == b"as it was" and store.damaged() == []


def test_a_large_file_is_streamed(store: ObjectStore, tmp_path: Path) -> None:
    """Sixty-four megabytes pass through a few."""
    source = tmp_path / "large"
    with source.open("wb") as out:
        for number in range(64):
            out.write(bytes([number]) * (1 << 20))
    tracemalloc.start()
    try:
        store.place(source, tmp_path / "target")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_damaged_object_satisfies_no_save(store: ObjectStore, tmp_path: Path) -> None:
    """It is found by its name, and written again by the next who has the content; the old link stays damaged."""
    source = file(tmp_path / "source", b"model" * 1000)
    store.place(source, tmp_path / "first")
    (kept,) = objects(store)
    kept.chmod(0o644)
    kept.write_bytes(b"moDel" * 1000)
    assert store.damaged() == [kept]
    store.place(source, tmp_path / "second")
    assert store.damaged() == [] and (tmp_path / "second").read_bytes() == source.read_bytes()
    assert (tmp_path / "first").read_bytes() != source.read_bytes()


def test_only_what_nothing_links_to_is_collected(store: ObjectStore, tmp_path: Path) -> None:
    """And not before its writer had the time to link it."""
    for name in ("used", "left"):
        store.place(file(tmp_path / "source", name.encode()), tmp_path / name)
    (tmp_path / "left").unlink()
    assert store.collect().objects == 0
    gone = store.collect(settled=0)
    assert (gone.objects, gone.stored_bytes) == (1, 4) and store.usage().objects == 1
    assert (tmp_path / "used").read_bytes() == b"used"


def test_collecting_races_with_writers_and_nothing_is_lost(store: ObjectStore, tmp_path: Path) -> None:
    """While a collector deletes all it can, every file that was placed holds what it should."""
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            store.collect(settled=0)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        for number in range(150):
            source = file(tmp_path / "source", f"content {number % 3}".encode())
            store.place(source, tmp_path / f"target{number}")
            assert (tmp_path / f"target{number}").read_bytes() == source.read_bytes()
            if number % 5 == 4:
                for old in range(number - 4, number + 1):
                    (tmp_path / f"target{old}").unlink()
    finally:
        done.set()
        collector.join()


def test_a_killed_writer_leaves_no_half_object(store: ObjectStore, tmp_path: Path) -> None:
    """Whatever it was about: what has a name is whole, and what has none is swept away."""
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOREVER, store.root, tmp_path / "source", tmp_path / "targets"],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        threading.Event().wait(0.25)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert objects(store) and store.damaged() == []
    for left in (store.root / "incoming").iterdir():
        os.utime(left, (0, 0))
    store.collect(settled=0)
    assert not list((store.root / "incoming").iterdir())


@pytest.mark.parametrize(("code", "linked"), [(errno.EMLINK, True), (errno.EXDEV, False), (errno.EPERM, False)])
def test_a_file_system_that_gives_no_more_links_is_no_error(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, linked: bool
) -> None:
    """Too many names of one file: a new copy of it is shared from then on; none at all: each has its own."""
    source, real, refused = file(tmp_path / "source", b"model"), os.link, []

    def link(given: Path, target: Path) -> None:
        if not refused or not linked:
            refused.append(given)
            raise OSError(code, os.strerror(code))
        real(given, target)

    if linked:
        store.keep(source)
    monkeypatch.setattr(os, "link", link)
    store.place(source, tmp_path / "target")
    assert refused and (tmp_path / "target").read_bytes() == b"model"
    assert (tmp_path / "target").stat().st_nlink == (2 if linked else 1)
