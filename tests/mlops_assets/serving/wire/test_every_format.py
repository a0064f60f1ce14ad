"""The same rows get the same answers, whatever they are written in; over HTTP, of the real app, with a log."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import httpx
import msgpack
import polars as pl
import pytest

from mlops_assets.serving.app import Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.releases import OneRelease
from mlops_assets.serving.wire import formats as wire
from resources.online.packed_store import PackedStore

MODEL = "flights/late_arrival"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
ROWS = 300  # more than an event loop may spare
Row = dict[str, Any]


@pytest.fixture(scope="module")
def release(make_bundle: Callable[..., Path]) -> Release:
    return Release.load(make_bundle())


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "predictions")


@pytest.fixture
def ask(release: Release, log: PredictionLog, tmp_path: Path) -> Callable[[bytes, str], httpx.Response]:
    store = PackedStore.open(f"sqlite:///{tmp_path / 'packed.db'}")
    store.write("flights__weather", [(("EWR",), microseconds(NOON - timedelta(hours=1)), {"temp": 50.0})])
    store.write("flights__route", [(("EWR", "BOS"), microseconds(NOON - timedelta(days=9)), {"delay": 4.0})])

    async def one(content: bytes, kind: str) -> httpx.Response:
        app = create_app(lambda: Serving(OneRelease(release, "late:abc", "7"), store, log.writer()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        async with app.router.lifespan_context(app), client:
            return await client.post(f"/{MODEL}/predict", content=content, headers={"content-type": kind})

    return lambda content, kind: anyio.run(one, content, kind)


def given(rows: list[Row]) -> list[Row]:
    """Rows that bring their features, in a table or not."""
    inputs = ("distance", "carrier", "seats", "holiday", "temp", "delay")
    return [
        {"flight_id": row["flight_id"], "origin": row["origin"], "features": {name: row.get(name) for name in inputs}}
        for row in rows
    ]


def keyed(n: int) -> Row:
    carrier = ["AA", "UA", None, "??"][n % 4]
    row = {"distance": n * 3.5, "carrier": carrier, "seats": 50 + n, "holiday": n % 7 == 0}
    return {"flight_id": f"F{n}", "origin": "EWR" if n % 3 else "XXX", "dest": "BOS", **row}


def full(n: int) -> Row:
    rest = {"temp": None if n % 5 == 0 else n / 3, "delay": float(n % 60)}
    return {name: value for name, value in {**keyed(n), **rest}.items() if name != "dest"}


def written(rows: list[Row], kind: str, *, by_keys: bool) -> bytes:
    if kind == wire.ARROW:
        body = BytesIO()
        pl.DataFrame(rows).with_columns(at=pl.lit(NOON)).write_ipc_stream(body)
        return body.getvalue()
    asked = {"rows": rows if by_keys else given(rows), "at": NOON.isoformat()}
    packed: bytes = json.dumps(asked).encode() if kind == wire.JSON else msgpack.packb(asked)
    return packed


def read(response: httpx.Response, kind: str) -> list[Row]:
    assert (response.status_code, response.headers["content-type"]) == (200, kind), response.text
    if kind == wire.ARROW:
        rows = pl.read_ipc_stream(BytesIO(response.content)).rows(named=True)
        return [{**row, "fallbacks": json.loads(row["fallbacks"])} for row in rows]
    answer = response.json() if kind == wire.JSON else msgpack.unpackb(response.content)
    found: list[Row] = answer["predictions"]
    return found


@pytest.mark.parametrize("by_keys", [True, False])
def test_the_same_rows_get_the_same_answers_in_every_format(ask: Any, log: PredictionLog, by_keys: bool) -> None:
    """Bit for bit, with the same fallbacks; and the log holds the same features of each."""
    rows = [(keyed if by_keys else full)(n) for n in range(ROWS)]
    answers, logged = {}, {}
    for kind in (wire.JSON, wire.MSGPACK, wire.ARROW):
        answers[kind] = read(ask(written(rows, kind, by_keys=by_keys), kind), kind)
        logged[kind] = [line["inputs"] for line in log.find("F3", MODEL)]
    assert [answer["request_id"] for answer in answers[wire.JSON]] == [f"F{n}" for n in range(ROWS)]
    assert answers[wire.MSGPACK] == answers[wire.JSON] == answers[wire.ARROW]
    assert len({answer["prediction"] for answer in answers[wire.JSON]}) > 2
    assert any(answer["fallbacks"] for answer in answers[wire.JSON]) is by_keys
    assert logged[wire.ARROW] == logged[wire.JSON] * 3


def test_a_batch_of_a_table_is_logged_with_its_keys(ask: Any, log: PredictionLog) -> None:
    """Those that stood beside the inputs."""
    kind, rows = wire.ARROW, [full(n) for n in range(3)]
    read(ask(written(rows, kind, by_keys=False), kind), kind)
    (line,) = log.find("F1", MODEL)
    assert line["keys"] == {"origin": "EWR"} and line["inputs"]["temp"] == pytest.approx(1 / 3)


def test_a_question_of_a_table_can_be_sent_to_another_process(release: Release) -> None:
    """As a shadow is told of it."""
    raw = wire.read(written([full(n) for n in range(20)], wire.ARROW, by_keys=False), wire.ARROW)
    question = release.form.read(raw)
    copy = pickle.loads(pickle.dumps(question))
    assert copy.given.matrix(release.schema).tobytes() == question.given.matrix(release.schema).tobytes()


@pytest.mark.parametrize(("kind", "most_ms"), [(wire.JSON, 40), (wire.MSGPACK, 40), (wire.ARROW, 20)])
def test_reading_a_thousand_rows_takes_a_few_milliseconds(release: Release, kind: str, most_ms: float) -> None:
    """At the best of several, twenty times what it takes on an idle machine: a slow way would still exceed it."""
    body = written([full(n) for n in range(1000)], kind, by_keys=False)

    def once() -> float:
        began = time.perf_counter()
        question = release.form.read(wire.read(body, kind))
        assert question.given is not None and len(question.given.matrix(release.schema)) == 1000
        return (time.perf_counter() - began) * 1000

    assert min(once() for _ in range(10)) < most_ms
