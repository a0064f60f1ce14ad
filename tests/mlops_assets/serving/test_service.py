"""The served process, for real: BentoML, HTTP, records, log, kill -9."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from mlops_assets.serving.app import parity
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from resources.bentos import BentoStore
from resources.online.packed_store import PackedStore, online_store_url
from resources.releases import ReleaseStore

MODEL = "flights/late_arrival"
PREDICT, RELEASE = f"/{MODEL}/predict", f"/{MODEL}/release"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
ROW = {"origin": "EWR", "dest": "BOS", "distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False}
VALUES = [200.0, "UA", 150, False, 50.0, 4.0]
WHO = {"by": "ada", "why": "a test"}
MakeBundle = Callable[..., Path]


def bento(bundle: Path, version: str) -> str:
    return BentoStore().build(bundle, MODEL, {"version": version, "run_id": f"run{version}"})


def release(bundle: Path, version: str, steps: tuple[int, ...] = (100,)) -> str:
    tag = bento(bundle, version)
    ReleaseStore().start_canary(MODEL, tag, version, steps, **WHO)
    return tag


def publish_features() -> None:
    store = PackedStore.open(online_store_url())
    store.write("flights__weather", [(("EWR",), microseconds(NOON), {"temp": 50.0})])
    store.write("flights__route", [(("EWR", "BOS"), microseconds(NOON), {"delay": 4.0})])
    store.close()


def ask(client: httpx.Client, **row: Any) -> dict[str, Any]:
    response = client.post(PREDICT, json={"rows": [{**ROW, **row}], "at": NOON.isoformat()})
    assert response.status_code == 200, response.text
    (answer,) = response.json()["predictions"]
    return answer


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_bento_answers_alone(served: Any, make_bundle: MakeBundle, home: Path) -> None:
    """`bentoml serve <tag>` with no platform around it: golden requests as in training, cold keys marked, no state."""
    bundle = make_bundle()
    tag = bento(bundle, "3")
    assert parity(BentoStore().path(tag)) < 1e-6
    golden = json.loads((bundle / "golden.json").read_text())
    names = json.loads((bundle / "plan.json").read_text())["inputs"]
    with served(target=tag, without="MLOPS_HOME") as client:
        rows = [{"features": dict(zip(names, row, strict=True))} for row in golden["rows"]]
        answers = client.post(PREDICT, json={"rows": rows}).json()["predictions"]
        assert [a["prediction"] for a in answers] == pytest.approx(golden["predictions"], abs=1e-6)
        assert {(a["release"], a["version"]) for a in answers} == {(tag, "3")}
        assert [f["reason"] for f in ask(client)["fallbacks"]] == ["no row", "no row"]
    assert {path.name for path in home.iterdir()} == {"bentoml"}
    assert not (BentoStore().path(tag).parent / ".mlops").exists()


def test_releases_are_followed_over_http(served: Any, make_bundle: MakeBundle, home: Path) -> None:
    """Released, canaried, promoted, rolled back and forward again: the answers are those of the stated release."""
    publish_features()
    first, second = make_bundle(1), make_bundle(2)
    expected = {"1": Release.load(first).predict([VALUES])[0], "2": Release.load(second).predict([VALUES])[0]}
    assert expected["1"] != expected["2"]
    records = ReleaseStore()
    with served() as client:
        assert client.post(PREDICT, json={"rows": [ROW]}).status_code == 404
        release(first, "1")
        eventually(lambda: client.get(RELEASE).status_code == 200)
        assert (ask(client)["version"], ask(client)["prediction"]) == ("1", expected["1"])

        release(second, "2", steps=(50, 100))
        eventually(lambda: client.get(RELEASE).json()["revision"] == 2)
        sides = {dest: ask(client, dest=dest) for dest in (f"D{n}" for n in range(40))}
        assert {side["version"] for side in sides.values()} == {"1", "2"}
        assert all(ask(client, dest=dest)["version"] == side["version"] for dest, side in sides.items())

        for act, version in (
            (records.advance, "2"),
            (records.rollback, "1"),
            (records.promote, "2"),
        ):
            act(MODEL, *(["2"] if act == records.promote else []), **WHO)
            eventually(lambda version=version: ask(client)["version"] == version)  # type: ignore[misc]
            assert ask(client)["prediction"] == expected[version]
    assert [change.action for change in records.history(MODEL)] == [
        "release", "start canary", "promote", "rollback", "promote",
    ]  # fmt: skip


def test_no_request_fails_while_releases_come_and_go(served: Any, make_bundle: MakeBundle, home: Path) -> None:
    """Constant load, five releases, a broken one and a rollback: every answer is right, none is from the broken one."""
    publish_features()
    good = {str(n): make_bundle(n) for n in range(1, 6)}
    expected = {version: Release.load(bundle).predict([VALUES])[0] for version, bundle in good.items()}
    tags = {version: bento(bundle, version) for version, bundle in good.items()}
    tags["broken"] = bento(make_bundle(9, golden_shift=0.2), "broken")
    records, stop = ReleaseStore(), threading.Event()

    def put(version: str) -> None:
        records.start_canary(MODEL, tags[version], version, [100], **WHO)

    def load(client: httpx.Client) -> list[tuple[str, float]]:
        answers = []
        while not stop.is_set():
            answer = ask(client)
            answers.append((answer["version"], answer["prediction"]))
        return answers

    put("1")
    with served() as client, ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, client) for _ in range(4)]
        try:
            for version in ("2", "3", "broken", "4", "5"):
                put(version)
                if version == "broken":
                    eventually(lambda: bool(client.get(RELEASE).json()["refused"]))
                else:
                    eventually(lambda version=version: ask(client)["version"] == version)  # type: ignore[misc]
            records.rollback(MODEL, **WHO)
            eventually(lambda: ask(client)["version"] == "4")
        finally:
            stop.set()
        answers = [answer for result in loads for answer in result.result()]
    assert {version for version, _ in answers} == set(good)
    assert all(prediction == expected[version] for version, prediction in answers)
    log = PredictionLog()
    logged = log.read(MODEL, NOON.date())
    assert logged.height >= len(answers)
    assert log.gaps(MODEL).lines == log.gaps(MODEL).dropped == 0


def test_a_killed_worker_comes_back_and_the_log_lost_at_most_a_flush(
    served: Any, make_bundle: MakeBundle, home: Path
) -> None:
    """kill -9 of the answering process: what was flushed is there without a gap, and a new worker answers."""
    publish_features()
    release(make_bundle(), "1")
    log = PredictionLog()
    with served() as client:
        for n in range(50):
            ask(client, flight_id=f"before{n}")
        eventually(lambda: log.read(MODEL, NOON.date()).height == 50)
        ask(client, flight_id="maybe lost")
        (worker_pid,) = {int(writer.split("-")[0]) for writer in log.read(MODEL, NOON.date())["writer"]}
        os.kill(worker_pid, signal.SIGKILL)
        eventually(lambda: answers_again(client), seconds=60)
        ask(client, flight_id="after")
        assert not psutil.pid_exists(worker_pid) or psutil.Process(worker_pid).status() == psutil.STATUS_ZOMBIE
    frame = log.read(MODEL, NOON.date())
    ids = frame["request_id"].to_list()
    assert {f"before{n}" for n in range(50)} | {"after"} <= set(ids)
    assert frame["writer"].n_unique() == 2
    assert log.gaps(MODEL).lines == 0


def answers_again(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
