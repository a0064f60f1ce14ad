"""The predict route: strict about what it is asked, exact in what it answers. In process, over ASGI."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from mlops_assets.serving.app import Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import microseconds
from mlops_assets.serving.prediction_log import PredictionLog
from mlops_assets.serving.releases import OneRelease
from resources.online.packed_store import PackedStore

PREDICT = "/flights/late_arrival/predict"
NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
ROW: dict[str, Any] = {
    "origin": "EWR", "dest": "BOS", "distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False,
}  # fmt: skip
FULL = {"distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False, "temp": 50.0, "delay": 4.0}


@pytest.fixture(scope="session")
def release(make_bundle: Callable[..., Path]) -> Release:
    return Release.load(make_bundle())


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    store = PackedStore.open(f"sqlite:///{tmp_path / 'packed.db'}")
    store.write("flights__weather", [(("EWR",), microseconds(NOON - timedelta(hours=1)), {"temp": 50.0})])
    store.write("flights__route", [(("EWR", "BOS"), microseconds(NOON - timedelta(days=9)), {"delay": 4.0})])
    return store


@pytest.fixture
def log(tmp_path: Path) -> PredictionLog:
    return PredictionLog(tmp_path / "predictions")


@pytest.fixture
def ask(release: Release, store: PackedStore, log: PredictionLog) -> Callable[..., httpx.Response]:
    """`ask(body)` or `ask(method=..., path=..., content=...)`: one request to an app with one release."""

    async def one(method: str, path: str, options: dict[str, Any]) -> httpx.Response:
        app = create_app(lambda: Serving(OneRelease(release, "flights_late_arrival:abc", "7"), store, log.writer()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        async with app.router.lifespan_context(app), client:
            return await client.request(method, path, **options)

    def ask(body: Any = None, path: str = PREDICT, method: str = "POST", **options: Any) -> httpx.Response:
        return anyio.run(one, method, path, {"json": body} if body is not None else options)

    return ask


def answers(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["predictions"]
    return found


def errors(response: httpx.Response, status: int = 422) -> list[tuple[int | None, str | None, str]]:
    assert response.status_code == status, response.text
    assert all(error["fix"] for error in response.json()["errors"])
    return [(error["row"], error["field"], error["problem"]) for error in response.json()["errors"]]


def test_an_answer_by_keys_equals_the_model_on_the_looked_up_features(ask: Any, release: Release) -> None:
    """What is looked up at the asked time is what is predicted on, and the answer says who gave it."""
    (answer,) = answers(ask({"rows": [{**ROW, "flight_id": "UA1"}], "at": NOON.isoformat()}))
    assert answer == {
        "request_id": "UA1",
        "prediction": release.predict([list(FULL.values())])[0],
        "release": "flights_late_arrival:abc",
        "version": "7",
        "variant": "champion",
        "fallbacks": [],
    }


def test_full_rows_are_answered_without_a_lookup(ask: Any, release: Release) -> None:
    """Every input under `features`: no key is needed, null is a value, and nothing falls back."""
    first, second = answers(ask({"rows": [{"features": FULL}, {"features": {**FULL, "temp": None, "carrier": "??"}}]}))
    assert first["prediction"] == release.predict([list(FULL.values())])[0]
    assert second["prediction"] == release.predict([[200.0, "??", 150, False, None, 4.0]])[0]
    assert first["fallbacks"] == second["fallbacks"] == []


def test_a_thousand_rows_are_answered_in_their_order(ask: Any) -> None:
    """A large request (answered in a thread) says the same to each row as a small one."""
    rows = [{**ROW, "distance": float(n), "flight_id": str(n)} for n in range(1000)]
    many = answers(ask({"rows": rows, "at": NOON.isoformat()}))
    assert [answer["request_id"] for answer in many] == [str(n) for n in range(1000)]
    few = answers(ask({"rows": rows[500:520], "at": NOON.isoformat()}))
    assert [a["prediction"] for a in many[500:520]] == [a["prediction"] for a in few]


def test_rows_of_both_kinds_are_two_requests(ask: Any) -> None:
    """Some rows to look up and some with every input do not go through the same stages."""
    (problem,) = errors(ask({"rows": [ROW, {"features": FULL}]}))
    assert problem == (1, "features", "brings features, row 0 does not")


def test_a_cold_start_is_marked(ask: Any) -> None:
    """Unknown keys are answered on nulls, and each view says why."""
    rows = [{**ROW, "origin": "XXX"}, ROW]
    cold, late = answers(ask({"rows": rows, "at": (NOON + timedelta(hours=4)).isoformat()}))
    assert [(f["view"], f["keys"], f["reason"]) for f in cold["fallbacks"]] == [
        ("flights/weather", {"origin": "XXX"}, "no row"),
        ("flights/route", {"origin": "XXX", "dest": "BOS"}, "no row"),
    ]
    assert [f["reason"] for f in late["fallbacks"]] == ["expired"]


def test_without_an_id_each_row_is_given_one(ask: Any) -> None:
    """Ids given are distinct, so the log can tell the rows apart."""
    ids = [answer["request_id"] for answer in answers(ask({"rows": [ROW] * 10}))]
    assert len({*ids}) == 10


def test_every_answer_is_logged_as_it_was_given(ask: Any, log: PredictionLog) -> None:
    """The log holds the values used and when they became true."""
    (answer,) = answers(ask({"rows": [{**ROW, "flight_id": "UA1"}], "at": "2013-04-01T08:00:00-04:00"}))
    (line,) = log.find("UA1", "flights/late_arrival")
    assert (line["inputs"], line["keys"]) == (FULL, {"origin": "EWR", "dest": "BOS"})
    assert line["event_times"] == {
        "flights/weather": "2013-04-01T11:00:00+00:00",
        "flights/route": "2013-03-23T12:00:00+00:00",
    }
    assert (line["at"], line["prediction"]) == ("2013-04-01T12:00:00+00:00", answer["prediction"])
    assert 0 < line["latency_ms"] < 10_000


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"origin": None}, "origin", "null"),
        ({"origin": 5}, "origin", "5 is not a string"),
        ({"distance": "far"}, "distance", "'far' is not a finite number"),
        ({"distance": True}, "distance", "True is not a finite number"),
        ({"distance": 1e39}, "distance", "1e+39 is not a finite number"),
        ({"distance": -1}, "distance", "-1 is out of bounds"),
        ({"distance": 6000.1}, "distance", "6000.1 is out of bounds"),
        ({"seats": 1.5}, "seats", "1.5 is not a whole number"),
        ({"seats": True}, "seats", "True is not a whole number"),
        ({"seats": 2**63}, "seats", "9223372036854775808 is not a whole number"),
        ({"holiday": 1}, "holiday", "1 is not true or false"),
        ({"carrier": ["UA"]}, "carrier", "['UA'] is not a string"),
        ({"speed": 3}, "speed", "unknown field"),
        ({"temp": 50.0}, "temp", "unknown field"),
        ({"flight_id": {"a": 1}}, "flight_id", "not a string"),
        ({"features": FULL}, "features", "brings features, row 0 does not"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_field(ask: Any, change: dict[str, Any], field: str, problem: str) -> None:
    """The second row is wrong: the error says so, and no row is answered."""
    assert (1, field, problem) in errors(ask({"rows": [ROW, {**ROW, **change}]}))


@pytest.mark.parametrize("name", list(ROW))
def test_a_missing_value_is_named(ask: Any, name: str) -> None:
    """Every key and request feature is asked for; null is not the same as left out."""
    assert errors(ask({"rows": [{k: v for k, v in ROW.items() if k != name}]})) == [(0, name, "missing")]


@pytest.mark.parametrize("name", ["distance", "carrier", "seats", "holiday"])
def test_a_request_feature_may_be_null(ask: Any, name: str) -> None:
    """A caller who knows that a value is unknown says null."""
    assert answers(ask({"rows": [{**ROW, name: None}]}))


@pytest.mark.parametrize(
    ("features", "field", "problem"),
    [
        ([1, 2], "features", "not an object"),
        ({**FULL, "speed": 1}, "speed", "unknown field"),
        ({k: v for k, v in FULL.items() if k != "temp"}, "temp", "missing"),
        ({**FULL, "temp": "warm"}, "temp", "'warm' is not a finite number"),
    ],
)
def test_full_rows_are_as_strict(ask: Any, features: Any, field: str, problem: str) -> None:
    """Features by value are checked against the schema of training."""
    assert errors(ask({"rows": [{"features": features}]})) == [(0, field, problem)]


@pytest.mark.parametrize(
    ("body", "field", "problem"),
    [
        ([], None, "the body is not an object"),
        ({}, "rows", "rows is missing or empty"),
        ({"rows": []}, "rows", "rows is missing or empty"),
        ({"rows": {"origin": "EWR"}}, "rows", "rows is missing or empty"),
        ({"rows": [ROW] * 10_001}, "rows", "10001 rows"),
        ({"rows": [ROW], "when": 1}, "when", "unknown field"),
        ({"rows": [ROW], "at": "2013-04-01T12:00:00"}, "at", "a time without a zone"),
        ({"rows": [ROW], "at": 5}, "at", "not a time (fromisoformat: argument must be str)"),
    ],
)
def test_a_malformed_request_is_named(ask: Any, body: Any, field: str | None, problem: str) -> None:
    """What is wrong with the request as a whole has no row."""
    assert errors(ask(body)) == [(None, field, problem)]


@pytest.mark.parametrize("at", ["yesterday", "", "2013-13-01T00:00:00+00:00", "9999-12-31T23:59:59-23:59"])
def test_a_time_that_is_none_is_refused(ask: Any, at: str) -> None:
    """Also one that no UTC calendar holds."""
    ((row, field, problem),) = errors(ask({"rows": [ROW], "at": at}))
    assert (row, field) == (None, "at")
    assert problem.startswith("not a time")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"rows": [{"distance": NaN}]}', b'{"rows": [{"a": Infinity}]}']
)
def test_what_is_not_json_is_refused(ask: Any, content: bytes) -> None:
    """NaN and Infinity are not JSON either."""
    ((_, _, problem),) = errors(ask(content=content))
    assert problem.startswith("the body is not JSON")


def test_infinity_in_disguise_is_refused(ask: Any) -> None:
    """1e999 is JSON, and no finite number."""
    row = '{"origin": "EWR", "dest": "BOS", "distance": 1e999, "carrier": "UA", "seats": 1, "holiday": false}'
    response = ask(content=b'{"rows": [' + row.encode() + b"]}")
    assert response.status_code == 422
    assert response.json()["errors"]


def test_a_row_that_is_no_object_is_named(ask: Any) -> None:
    """By its place in the list."""
    assert errors(ask({"rows": [ROW, 5, None]})) == [(1, None, "not an object"), (2, None, "not an object")]


def test_a_huge_body_is_refused_unread(ask: Any) -> None:
    """Over 8 MiB nothing is parsed."""
    assert errors(ask(content=b" " * (8 * 1024 * 1024 + 1)), 413) == [(None, None, "the body is over 8 MiB")]


def test_errors_are_bounded(ask: Any) -> None:
    """A thousand wrong rows do not give ten thousand errors."""
    assert len(errors(ask({"rows": [{}] * 1000}))) == 100


def test_an_unknown_model_lists_those_there_are(ask: Any) -> None:
    """404, and what to ask instead."""
    response = ask({"rows": [ROW]}, path="/flights/early/predict")
    assert errors(response, 404) == [(None, "model", "unknown model flights/early")]
    assert "flights/late_arrival" in response.json()["errors"][0]["fix"]


def test_health_and_release_say_what_serves(ask: Any) -> None:
    """For probes and for people."""
    assert ask(path="/healthz", method="GET").status_code == 200
    assert ask(path="/readyz", method="GET").json() == {
        "ready": True, "models": ["flights/late_arrival"], "not_ready": [],
    }  # fmt: skip
    serving = ask(path="/flights/late_arrival/release", method="GET").json()["serving"]
    assert serving == [{"release": "flights_late_arrival:abc", "version": "7", "weight": 100, "role": "champion"}]


def test_the_docs_page_loads_nothing_from_elsewhere(ask: Any) -> None:
    """It works on a machine without the internet: Swagger's files are those that BentoML serves and holds."""
    import bentoml._internal.server as bentoml_server

    page = ask(path="/docs", method="GET").text
    held = Path(bentoml_server.__file__).parent / "static_content"
    files = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {(held / Path(file).name).is_file() for file in files if file != "data:,"} == {True}
    assert "//" not in " ".join(files) and "/openapi.json" in page


def test_an_online_store_that_is_away_is_said_and_full_rows_are_answered(release: Release, log: PredictionLog) -> None:
    """503 with the way out where features must be looked up; what needs no look-up is answered as ever."""
    with socket.socket() as bound:  # a port that is taken, and where nobody listens
        bound.bind(("127.0.0.1", 0))
        _ask_while_away(release, log, bound.getsockname()[1])


def _ask_while_away(release: Release, log: PredictionLog, port: int) -> None:
    away = PackedStore.open(f"redis://127.0.0.1:{port}/0")

    async def ask(row: dict[str, Any]) -> httpx.Response:
        app = create_app(lambda: Serving(OneRelease(release, "flights_late_arrival:abc", "7"), away, log.writer()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        async with app.router.lifespan_context(app), client:
            return await client.post(PREDICT, json={"rows": [row]})

    refused = anyio.run(ask, ROW)
    ((_, _, problem),) = errors(refused, 503)
    assert f"127.0.0.1:{port}" in problem and refused.headers["Retry-After"] == "1"
    assert len(answers(anyio.run(ask, {"features": FULL}))) == 1
