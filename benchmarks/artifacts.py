"""A model of a gigabyte saved, saved again, read and packed, beside MLflow's own copies and BentoML's own build.

Ours streams every byte into an object, waits until the disk has it, and hashes it; reading compares every byte. MLflow
copies and compares nothing; its copy is waited for too, since a registry's version must outlive the machine's power.
Both sides work on this machine's disk, in a fresh place each time. The promised speed, 100 MB/s both ways, stands
beside as a peer of its own: a disk that others keep busy may not give it, and then gives the copy no more.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import Figure, Measurement, fresh_home, in_turn, require_equal, seconds
from resources.artifacts import runs
from resources.artifacts.manifest import Manifest, verified
from resources.bentos import CODE, PROJECT, BentoStore, _bentofile, _copy, _run_bentoml

MEGABYTES = 1_000
PROMISED = 100.0  # MB/s
TRACKING = "sqlite://"
MODEL = "benchmark/large"


def measure(rounds: int = 3, megabytes: int = MEGABYTES) -> Measurement:
    with fresh_home() as home:
        bundle = large_bundle(home / "bundle", megabytes)
        promised = megabytes / PROMISED
        copy(large_bundle(home / "small", 1), (home / "warm").as_uri(), "up")  # MLflow's imports are nobody's charge
        ours, peer = partial(last_of, publish, home, bundle), partial(last_of, copy, home, bundle)
        saved = in_turn(lambda: ours(1), lambda: peer(1), rounds)
        again = in_turn(lambda: ours(2), lambda: peer(2), rounds)
        with place(home) as location:
            busy = time.process_time()
            grown = growth(lambda: publish(bundle, location, "run"))
            busy = time.process_time() - busy
            fetched = runs.fetched(f"{location}/run/artifacts/bundle", "run", TRACKING, None)
            require_equal("the model", Manifest.of(fetched), Manifest.of(bundle))
            checked, plain = partial(verified, fetched), partial(reading, fetched)
            read = in_turn(lambda: seconds(checked), lambda: seconds(plain), rounds)
            packed, stored = packing(home, fetched, local(location))
    told = (
        f"A save kept a core busy for {busy:.2f} s ({megabytes / busy:,.0f} MB/s of a core; the rest is waiting for "
        f"the disk and for others), and took {grown:.0f} MB of memory more than the process had."
    )
    return Measurement(
        [
            Figure("artifacts.save", *saved, "MLflow's log_artifacts, on disk"),
            Figure("artifacts.save_at_100_MB_a_second", saved[0], promised, "the promise", target=1.0),
            Figure("artifacts.save_again", *again, "MLflow's log_artifacts, on disk"),
            Figure("artifacts.read", *read, "reading every byte"),
            Figure("artifacts.read_at_100_MB_a_second", read[0], promised, "the promise", target=1.0),
            Figure("artifacts.bento", *packed, "a build with the bundle in BentoML's context"),
            Figure("artifacts.two_saves_and_a_bento", *stored, "two copies and a Bento", "MB", target=0.4),
        ],
        [told],
    )


def large_bundle(directory: Path, megabytes: int) -> Path:
    """A bundle whose model is of so many megabytes that nothing can compress."""
    (directory / "model").mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps({"framework": "xgboost"}))
    with (directory / "model" / "model.ubj").open("wb") as model:
        for _ in range(megabytes):
            model.write(os.urandom(1_000_000))
    os.sync()
    return directory


@contextmanager
def place(home: Path) -> Iterator[str]:
    """The URI of an empty experiment."""
    with TemporaryDirectory(dir=home) as directory:
        yield Path(directory).as_uri()


def publish(bundle: Path, location: str, run: str) -> None:
    runs.published(bundle, f"{location}/{run}/artifacts", "bundle", TRACKING)


def copy(bundle: Path, location: str, run: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(f"{location}/{run}/artifacts").log_artifacts(str(bundle), "bundle")
    for path in local(f"{location}/{run}").rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def last_of(save: Callable[[Path, str, str], None], home: Path, bundle: Path, times: int) -> float:
    """Seconds of the last of so many saves of the same model."""
    with place(home) as location:
        return [seconds(partial(save, bundle, location, f"run{number}")) for number in range(times)][-1]


def reading(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass


def packing(home: Path, bundle: Path, registry: Path) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds of a Bento's build on each side, and the megabytes that registry and Bento take together.

    The registry holds the model twice by then; on the peer's side those are copies.
    """
    publish(bundle, registry.as_uri(), "again")
    bentos = BentoStore(home / "bentoml")
    ours = seconds(lambda: bentos.build(bundle, MODEL, {}))
    (tag,) = bentos.list()
    with TemporaryDirectory(dir=home) as directory:
        peer = seconds(lambda: stock_build(bundle, Path(directory)))
        (built,) = Path(directory).glob("bentos/*/*/src/bundle")
        require_equal("the packed model", Manifest.of(bentos.path(tag)), Manifest.of(built))
        copies = occupied(registry, built) + size(bundle)
    return (ours, peer), (occupied(registry, bentos.path(tag)), copies)


def stock_build(bundle: Path, store: Path) -> None:
    """As BentoML's documentation has it: everything in the context, and copied from there."""
    with TemporaryDirectory(prefix="bento-") as directory:
        context = Path(directory)
        shutil.copytree(bundle, context / "bundle")
        for part in CODE:
            _copy(PROJECT / part, context / part)
        (context / "bentofile.yaml").write_text(json.dumps(_bentofile(bundle, MODEL, "benchmark_large", {})))
        _run_bentoml(context, store, MODEL, "stock")


def occupied(*directories: Path) -> float:
    """Megabytes on disk; a file with many names once."""
    statuses = [path.stat() for directory in directories for path in directory.rglob("*") if path.is_file()]
    return sum({status.st_ino: status.st_size for status in statuses}.values()) / 1e6


def size(directory: Path) -> float:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


def growth(work: Callable[[], object]) -> float:
    """Megabytes that the process's highest use of memory rose by; of little meaning where it was higher before."""
    unit = 1e6 if sys.platform == "darwin" else 1e3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
