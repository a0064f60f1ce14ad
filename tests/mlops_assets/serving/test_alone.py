"""A serving process with nothing around it: records, Bentos, and an online store that comes and goes."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlops_assets.serving.plan import microseconds
from resources.online.packed_store import PackedStore
from resources.releases import ReleaseStore

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
ROW = {"origin": "EWR", "dest": "BOS", "distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False}
FULL = {"distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False, "temp": 50.0, "delay": 4.0}
STRICT, LENIENT = "flights/strict", "flights/lenient"
WHO = {"by": "ada", "why": "a test"}


def publish(redis: Any) -> None:
    with closing(PackedStore.open(redis.url)) as store:
        store.write("flights__weather", [(("EWR",), microseconds(NOON), {"temp": 50.0})])
        store.write("flights__route", [(("EWR", "BOS"), microseconds(NOON), {"delay": 4.0})])


def eventually(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def release(home: Path, bundle: Path, model: str, without_store: str) -> None:
    """A release as a process finds it: the bundle in a Bento's place, and a record; no BentoML was needed for it."""
    name = model.replace("/", "_")
    bento = home / "bentoml" / "bentos" / name / "1"
    shutil.copytree(bundle, bento / "src" / "bundle")
    plan = json.loads((bento / "src" / "bundle" / "plan.json").read_bytes())
    (bento / "src" / "bundle" / "plan.json").write_text(json.dumps({**plan, "without_store": without_store}))
    (bento / "bento.yaml").write_text("")
    ReleaseStore(home / "releases").start_canary(model, f"{name}:1", "1", [100], **WHO)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything else of the platform is where nobody answers."""
    nowhere = "http://127.0.0.1:9"
    for name in ("MLFLOW_TRACKING_URI", "MLOPS_MLFLOW_URL", "MLOPS_DAGSTER_URL", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(name, nowhere)
    monkeypatch.setenv("MLOPS_POSTGRES_URL", "postgresql+psycopg2://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("DAGSTER_HOME", "/nowhere")


def ask(client: httpx.Client, model: str, row: dict[str, Any]) -> httpx.Response:
    return client.post(f"/{model}/predict", json={"rows": [row], "at": NOON.isoformat()})


def reasons(response: httpx.Response) -> list[str]:
    (answer,) = response.json()["predictions"]
    return [fallback["reason"] for fallback in answer["fallbacks"]]


@pytest.mark.usefixtures("away")
def test_an_endpoint_serves_on_while_its_online_store_is_away(
    served: Any, make_bundle: Callable[..., Path], home: Path, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under constant requests: a model that falls back answers all of them, marked; one that does not says 503 and
    when to come again; rows that bring their inputs never notice. Nobody waits more than once; when it is back, so
    are the features. Nothing else of the platform is there at any time."""
    monkeypatch.setenv("MLOPS_ONLINE_STORE", redis.url)
    publish(redis)
    release(home, make_bundle(1, STRICT), STRICT, "refuse")
    release(home, make_bundle(2, LENIENT), LENIENT, "fall back")
    assert {path.name for path in home.iterdir()} == {"bentoml", "releases"}
    stop, waits = threading.Event(), list[float]()
    asked = {STRICT: (STRICT, ROW), LENIENT: (LENIENT, ROW), "full": (STRICT, {"features": FULL})}
    statuses: dict[str, set[int]] = {said: set() for said in asked}

    def load(client: httpx.Client) -> None:
        while not stop.is_set():
            for said, (model, row) in asked.items():
                began = time.perf_counter()
                statuses[said].add(ask(client, model, row).status_code)
                waits.append(time.perf_counter() - began)
            time.sleep(0.002)

    with served() as client:
        full = ask(client, STRICT, {"features": FULL}).json()["predictions"][0]["prediction"]
        found = ask(client, STRICT, ROW)
        assert found.json()["predictions"][0]["prediction"] == full and reasons(found) == []
        loader = threading.Thread(target=load, args=(client,))
        loader.start()
        try:
            eventually(lambda: all(200 in told for told in statuses.values()))
            redis.kill()
            eventually(lambda: ask(client, STRICT, ROW).status_code == 503 and 503 in statuses[STRICT])
            refused = ask(client, STRICT, ROW)
            assert "online store" in refused.text and refused.headers["retry-after"] == "1"
            assert reasons(ask(client, LENIENT, ROW)) == ["store away", "store away"]
            assert client.get("/readyz").status_code == 200, "its other requests are still answered"
            redis.start()
            publish(redis)
            eventually(lambda: ask(client, STRICT, ROW).status_code == 200)
            eventually(lambda: reasons(ask(client, LENIENT, ROW)) == [])
        finally:
            stop.set()
            loader.join()
    assert statuses == {STRICT: {200, 503}, LENIENT: {200}, "full": {200}}
    # not the longest: a busy machine keeps one waiting, a store that is waited for keeps every request
    assert sorted(waits)[len(waits) * 19 // 20] < 1.0, "requests waited for the store that was away"


@pytest.mark.usefixtures("away")
def test_an_endpoint_starts_without_its_online_store(served: Any, make_bundle: Callable[..., Path], home: Path) -> None:
    """A worker that comes back while it is away answers what can be answered; an embedded store may appear later."""
    release(home, make_bundle(1, STRICT), STRICT, "refuse")
    with served() as client:
        assert ask(client, STRICT, ROW).status_code == 503
        assert ask(client, STRICT, {"features": FULL}).status_code == 200
        with closing(PackedStore.open(f"sqlite:///{home / 'feast' / 'online_store.db'}")) as store:
            store.write("flights__weather", [(("EWR",), microseconds(NOON), {"temp": 50.0})])
        eventually(lambda: ask(client, STRICT, ROW).status_code == 200)
        assert reasons(ask(client, STRICT, ROW)) == ["no row"]
