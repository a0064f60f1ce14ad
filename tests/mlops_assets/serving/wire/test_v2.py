"""The Open Inference Protocol: its routes, tensors in JSON and as bytes, and its own shape of errors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from mlops_assets.serving.app import FrontDoor, Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.releases import OneRelease, Served
from mlops_assets.serving.releases.traffic import Traffic
from resources.online.packed_store import PackedStore
from resources.releases import Variant

MODEL = "/v2/models/flights.late_arrival"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
FULL: dict[str, list[Any]] = {
    "distance": [200.0, 300.0], "carrier": ["UA", "??"], "seats": [150, 100], "holiday": [False, True],
    "temp": [50.0, None], "delay": [4.0, 8.5],
}  # fmt: skip
KEYED: dict[str, list[Any]] = {
    "origin": ["EWR", "XXX"], "dest": ["BOS", "BOS"],
    **{name: FULL[name] for name in ("distance", "carrier", "seats", "holiday")},
}  # fmt: skip
DATATYPES = {"carrier": "BYTES", "seats": "INT64", "holiday": "BOOL", "origin": "BYTES", "dest": "BYTES"}


@pytest.fixture(scope="module")
def release(make_bundle: Callable[..., Path]) -> Release:
    return Release.load(make_bundle())


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "predictions")


class TwoReleases(OneRelease):
    """A champion and a challenger that gets no row of its own accord."""

    def __init__(self, champion: Release, challenger: Release) -> None:
        super().__init__(champion, "flights_late_arrival:abc", "7")
        other = (Variant("flights_late_arrival:def", "8", 0, "challenger"), challenger)
        self._served = Served(champion.model, Traffic((other, *self._served.traffic.shares)))  # type: ignore[union-attr]


@pytest.fixture
def ask(release: Release, make_bundle: Callable[..., Path], log: PredictionLog, tmp_path: Path) -> Callable[..., Any]:
    """`ask(path, body)`: POST a body (JSON, or bytes with `headers`), or GET without one."""
    store = PackedStore.open(f"sqlite:///{tmp_path / 'packed.db'}")
    store.write("flights__weather", [(("EWR",), microseconds(NOON - timedelta(hours=1)), {"temp": 50.0})])
    store.write("flights__route", [(("EWR", "BOS"), microseconds(NOON - timedelta(days=9)), {"delay": 4.0})])
    releases = TwoReleases(release, Release.load(make_bundle(1)))

    async def one(method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        app = create_app(lambda: Serving(releases, store, log.writer()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        async with app.router.lifespan_context(app), client:
            return await client.request(method, path, **options)

    def ask(path: str, body: Any = None, **options: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return anyio.run(one, "POST", path, {"content": body, **options})
        return anyio.run(one, "GET" if body is None else "POST", path, {"json": body} if body is not None else options)

    return ask


def tensor(name: str, values: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": DATATYPES.get(name, "FP64"), "data": values}


def request(columns: dict[str, list[Any]], **more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(name, values) for name, values in columns.items()], **more}


def binary(columns: dict[str, list[Any]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """The same with every tensor's bytes behind the JSON, NaN for None; and the headers."""
    tensors, data = [], b""
    for name, values in columns.items():
        kind = DATATYPES.get(name, "FP32")
        if kind == "BYTES":
            part = b"".join(struct.pack("<I", len(value)) + value.encode() for value in values)
        else:
            dtype = {"BOOL": "?", "INT64": "<i8", "FP32": "<f4"}[kind]
            part = np.array([np.nan if value is None else value for value in values], dtype).tobytes()
        parameters = {"binary_data_size": len(part)}
        tensors.append({"name": name, "shape": [len(values), 1], "datatype": kind, "parameters": parameters})
        data += part
    head = json.dumps({"inputs": tensors, **more}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def output(answer: dict[str, Any], name: str = "prediction") -> Any:
    return next(one["data"] for one in answer["outputs"] if one["name"] == name)


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    said: str = response.json()["error"]
    return said


def expected(release: Release) -> list[float]:
    return release.predict(list(zip(*FULL.values(), strict=True)))


def test_the_server_says_what_it_is_and_that_it_lives(ask: Any) -> None:
    """As the protocol has it."""
    assert ask("/v2").json() == {"name": "mlops-assets", "version": "2", "extensions": ["binary_tensor_data"]}
    assert ask("/v2/health/live").json() == {"live": True}
    assert ask("/v2/health/ready").json() == {"ready": True}
    assert ask(f"{MODEL}/ready").json() == {"name": "flights.late_arrival", "ready": True}
    assert ask(f"{MODEL}/versions/8/ready").status_code == 200
    assert "'9' is not served. Ask for one of: 8, 7" in error(ask(f"{MODEL}/versions/9/ready"), 404)
    assert "flights/late_arrival" in error(ask("/v2/models/flights.early/ready"), 404)


def test_a_models_metadata_names_its_tensors(ask: Any) -> None:
    """Every input, and what to send instead to have the features looked up."""
    told = ask(MODEL).json()
    assert (told["name"], told["versions"], told["platform"]) == ("flights.late_arrival", ["7", "8"], "xgboost")
    assert {one["name"]: one["datatype"] for one in told["inputs"]} == {
        name: DATATYPES.get(name, "FP64") for name in FULL
    }
    assert [one["name"] for one in told["parameters"]["by_keys"]] == list(KEYED)
    assert told["outputs"] == [{"name": "prediction", "datatype": "FP64", "shape": [-1]}]
    assert ask(f"{MODEL}/versions/8").json()["versions"] == ["8"]
    assert "unknown model" in error(ask("/v2/models/flights.early"), 404)


def test_tensors_of_all_inputs_are_answered_as_rows_are(ask: Any, release: Release) -> None:
    """JSON's null and a nested shape too; the answer repeats the id and says who gave it."""
    answer = ask(f"{MODEL}/infer", request(FULL, id="q1")).json()
    assert output(answer) == expected(release)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("q1", "flights.late_arrival", "7")
    assert answer["parameters"] == {"release": "flights_late_arrival:abc", "variant": "champion", "fallbacks": 0}
    nested = request(FULL)
    for one in nested["inputs"]:
        one |= {"shape": [2, 1], "data": [[value] for value in one["data"]]}
    assert output(ask(f"{MODEL}/infer", nested).json()) == expected(release)


def test_bytes_go_both_ways(ask: Any, release: Release) -> None:
    """Binary tensors of all kinds, NaN where a number is missing, and the prediction as bytes behind the JSON."""
    body, headers = binary(FULL, parameters={"binary_data_output": True})
    response = ask(f"{MODEL}/infer", body, headers=headers)
    length = int(response.headers["inference-header-content-length"])
    said = json.loads(response.content[:length])
    assert said["outputs"] == [
        {"name": "prediction", "shape": [2], "datatype": "FP64", "parameters": {"binary_data_size": 16}}
    ]
    assert np.frombuffer(response.content[length:], "<f8").tolist() == expected(release)
    plain = ask(f"{MODEL}/infer", binary(FULL)[0], headers=binary(FULL)[1])
    assert output(plain.json()) == expected(release)


def test_keys_are_looked_up_at_the_time_asked_and_ids_are_logged(
    ask: Any, release: Release, log: PredictionLog
) -> None:
    """The first row is found, the second falls back; label keys become request ids."""
    asked = request({**KEYED, "flight_id": ["a", "b"]}, parameters={"at": NOON.isoformat()})
    asked["inputs"][-1]["datatype"] = "BYTES"
    asked["outputs"] = [{"name": name} for name in ("prediction", "request_id", "version")]
    answer = ask(f"{MODEL}/infer", asked).json()
    assert answer["parameters"]["fallbacks"] == 1
    assert (output(answer, "request_id"), output(answer, "version")) == (["a", "b"], ["7", "7"])
    assert output(answer) == release.predict(
        [(200.0, "UA", 150, False, 50.0, 4.0), (300.0, "??", 100, True, None, None)]
    )
    assert log.find("b", "flights/late_arrival")[0]["keys"] == {"origin": "XXX", "dest": "BOS"}


def test_a_version_that_is_named_answers_itself(ask: Any, release: Release) -> None:
    """Whatever its share of the traffic; one that is not served is unknown."""
    answer = ask(f"{MODEL}/versions/8/infer", request(FULL)).json()
    assert (answer["model_version"], answer["parameters"]["variant"]) == ("8", "challenger")
    assert output(answer) != expected(release)
    assert "version" in error(ask(f"{MODEL}/versions/9/infer", request(FULL)), 404)


def changed(name: str, **change: Any) -> dict[str, Any]:
    asked = request(FULL)
    next(one for one in asked["inputs"] if one["name"] == name).update(change)
    return asked


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request({"distance": [1.0]}), "missing"),
        (request({**FULL, "speed": [1.0, 2.0]}), "speed: unknown field"),
        (request({}), "inputs is missing or empty"),
        ({"inputs": [tensor("a", [1.0])] * 2}, "two of one"),
        (changed("distance", data=["a", "b"]), "distance: FP64 that holds str"),
        (changed("distance", datatype="FP8"), "datatype 'FP8'"),
        (changed("distance", shape=[3]), "2 values for a shape of 3"),
        (changed("distance", shape=[2, 1, 1]), "neither [rows] nor"),
        (changed("distance", shape=[10**9]), "1000000000 rows"),
        (changed("distance", shape=[1, 2]), "tensors of unequal length"),
        (changed("distance", data=None), "data is missing"),
        (changed("distance", data=[1e39, 2.0]), "row 0, distance: 1e+39 is not a finite number"),
        (changed("seats", data=[1, True]), "INT64 that holds bool"),
        (changed("seats", datatype="INT8", data=[1, 300]), "out of bounds"),
        (changed("seats", datatype="FP64", data=[1.0, 2.0]), "seats: a column of Float64 is not a whole number"),
        (changed("carrier", shape=[1, 2]), "only numbers come as arrays"),
        (request({**KEYED, "distance": [200.0, -1.0]}), "row 1, distance: -1.0 is out of bounds"),
        (request(FULL, parameters={"at": "noon"}), "at: not a time"),
        (request(FULL, outputs=[{"name": "probability"}]), "unknown output 'probability'"),
        (request(FULL, parameters=5), "parameters is not an object"),
        ([1], "the body is not an object"),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_words(ask: Any, asked: Any, said: str) -> None:
    """One text that names the tensor and the row."""
    response = ask(f"{MODEL}/infer", asked)
    assert said in error(response, response.status_code) and response.status_code in (400, 422)


def test_bytes_that_do_not_add_up_are_refused(ask: Any) -> None:
    """Too few, too many, a length beyond the body, a text beyond its tensor, a content type of another kind."""
    body, headers = binary(FULL)
    assert "are left" in error(ask(f"{MODEL}/infer", body[:-1], headers=headers), 422)
    assert "belong to no tensor" in error(ask(f"{MODEL}/infer", body + b"1", headers=headers), 422)
    for length in ("0", "-1", "x", str(len(body) + 1)):
        wrong = {"Inference-Header-Content-Length": length}
        assert "no length within the body" in error(ask(f"{MODEL}/infer", body, headers=wrong), 400)
    head = len(body) - int(headers["Inference-Header-Content-Length"])
    at = len(body) - head + 2 * 4  # behind the distances: the length of the first carrier
    broken = body[:at] + b"\xff\xff\xff\x7f" + body[at + 4 :]
    assert "carrier: a text ends beyond its tensor" in error(ask(f"{MODEL}/infer", broken, headers=headers), 422)
    assert "content type" in error(ask(f"{MODEL}/infer", b"{}", headers={"Content-Type": "text/plain"}), 415)
    assert "encoded as gzip" in error(ask(f"{MODEL}/infer", b"{}", headers={"Content-Encoding": "gzip"}), 415)


def test_the_front_door_answers_infer_itself(release: Release, log: PredictionLog, tmp_path: Path) -> None:
    """Before all that else a serving framework has; everything but infer it hands on."""

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> list[int]:
        store = PackedStore.open(f"sqlite:///{tmp_path / 'packed.db'}")
        app = create_app(lambda: Serving(OneRelease(release, "late:abc", "7"), store, log.writer()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(FrontDoor(app, rest)), base_url="http://here")
        paths = ("/infer", "/versions/7/infer", "/versions/9/infer", "/version/7/infer", "/ready/infer", "")
        async with app.router.lifespan_context(app), client:
            return [(await client.post(MODEL + path, json=request(FULL))).status_code for path in paths]

    assert anyio.run(ask) == [200, 200, 404, 418, 418, 418]
