"""What the predict route promises besides its answers: a bounded queue, deadlines, failures that are told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from mlops_assets.serving.admission import Admission
from mlops_assets.serving.app import FrontDoor, Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.plan import EmptyStore
from mlops_assets.serving.prediction_log import NoLog
from mlops_assets.serving.releases import OneRelease, Served
from mlops_assets.serving.releases.traffic import Traffic
from mlops_assets.serving.wire.raw import MAX_BODY
from resources.releases import Variant

PREDICT = "/flights/late_arrival/predict"
FULL = {"distance": 200.0, "carrier": "UA", "seats": 150, "holiday": False, "temp": 50.0, "delay": 4.0}
BODY = {"rows": [{"features": FULL}]}
SLOW_SECONDS = 0.15


@pytest.fixture(scope="session")
def release(make_bundle: Callable[..., Path]) -> Release:
    return Release.load(make_bundle())


def failing(release: Release) -> Release:
    """The release, whose model raises."""

    def fail(x: np.ndarray) -> np.ndarray:
        raise RuntimeError(f"cannot predict {len(x)} rows")

    broken = replace(release, predictor=fail)
    vars(broken)["quick"] = True  # as it was when it still answered
    return broken


def slow(release: Release) -> Release:
    """The release, whose model takes its time."""

    def wait(x: np.ndarray) -> np.ndarray:
        time.sleep(SLOW_SECONDS)
        return release.predictor(x)

    return replace(release, predictor=wait)


class Trial(OneRelease):
    """A champion, and a challenger that gets `weight` percent."""

    def __init__(self, champion: Release, challenger: Release, weight: int) -> None:
        super().__init__(champion, "m:old", "1")
        shares = (
            (Variant("m:new", "2", weight, "challenger"), challenger),
            (Variant("m:old", "1", 100 - weight), champion),
        )
        self._served = Served(champion.model, Traffic(shares))


@asynccontextmanager
async def client_of(releases: OneRelease, **parts: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Serving]]:
    serving = Serving(releases, EmptyStore(), NoLog(), **parts)
    app = create_app(lambda: serving)
    transport = httpx.ASGITransport(FrontDoor(app, app))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://here", timeout=30) as client,
    ):
        yield client, serving


def ask(releases: OneRelease, path: str = PREDICT, body: Any = BODY, **options: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        async with client_of(releases) as (client, _):
            return await client.post(path, **({"json": body} | options))

    return anyio.run(one)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(release: Release) -> None:
    """Two are answered at a time and two wait; the rest of ten get 429, all before the first answer."""
    begun, refused, model = threading.Event(), threading.Event(), slow(release).predictor

    def wait(x: np.ndarray) -> np.ndarray:
        assert not begun.is_set() or refused.wait(60), "six of ten were not refused while the others waited"
        return model(x)

    async def ten() -> tuple[list[httpx.Response], int]:
        one_release = OneRelease(replace(release, predictor=wait), "m:1", "1")
        async with client_of(one_release, admission=Admission(requests=4)) as (client, serving):
            assert (await client.post(PREDICT, json=BODY)).status_code == 200  # by now the model is known to be slow
            begun.set()
            answers: list[httpx.Response] = []

            async def one() -> None:
                answers.append(await client.post(PREDICT, json=BODY))
                if len(answers) == 6:
                    refused.set()

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(one)
            return answers, serving.admission.depth

    answers, depth = anyio.run(ten)
    assert [answer.status_code for answer in answers] == [429] * 6 + [200] * 4
    assert all(answer.headers["retry-after"] == "1" for answer in answers[:6])
    assert answers[0].json()["errors"][0]["problem"] == "the queue is full (4 requests)"
    assert depth == 0, "who was refused or answered waits no more"


def test_a_request_that_waited_past_its_deadline_is_not_answered(release: Release) -> None:
    """Three on two threads: the third waits for a whole prediction, longer than its caller allows."""

    async def three() -> list[httpx.Response]:
        async with client_of(OneRelease(slow(release), "m:1", "1")) as (client, _):
            answers: list[httpx.Response] = []

            async def one() -> None:
                answers.append(await client.post(PREDICT, json=BODY, headers={"x-deadline-ms": "100"}))

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(one)
            return answers

    assert sorted(answer.status_code for answer in anyio.run(three)) == [200, 200, 504]


def test_the_declared_deadline_is_the_longest(release: Release) -> None:
    """A caller may ask for less than the pipeline declares, never for more."""
    hurried = replace(release, plan=replace(release.plan, deadline_ms=0.0))
    response = ask(OneRelease(hurried, "m:1", "1"), headers={"x-deadline-ms": "60000"})
    assert response.status_code == 504
    assert "longer than its deadline of 0 ms" in response.text


def test_a_deadline_that_is_no_number_is_named(release: Release) -> None:
    response = ask(OneRelease(release, "m:1", "1"), headers={"x-deadline-ms": "soon"})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "x-deadline-ms")


def test_a_slow_model_keeps_no_other_request_waiting(release: Release) -> None:
    """While it predicts, the process tells that it is alive in a small part of that time."""

    async def both() -> float:
        async with (
            client_of(OneRelease(slow(release), "m:1", "1")) as (client, _),
            anyio.create_task_group() as group,
        ):
            group.start_soon(lambda: client.post(PREDICT, json=BODY))
            await anyio.sleep(SLOW_SECONDS / 5)
            began = time.perf_counter()
            assert (await client.get("/healthz")).status_code == 200
            return time.perf_counter() - began

    assert anyio.run(both) < SLOW_SECONDS / 2


def test_a_model_that_fails_is_answered_with_500_and_logged(release: Release, caplog: pytest.LogCaptureFixture) -> None:
    """The caller learns nothing of our insides; the log has the reason and the caller's request id."""
    response = ask(OneRelease(failing(release), "m:1", "1"), headers={"x-request-id": "r-17"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "r-17")
    assert "cannot predict" not in response.text
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert (vars(record)["request_id"], str(record.exc_info and record.exc_info[1])) == (
        "r-17",
        "cannot predict 1 rows",
    )


@pytest.mark.parametrize("weight", [50, 100])
def test_a_challenger_that_fails_costs_no_caller_an_answer(release: Release, weight: int) -> None:
    """Every row is answered, by the champion where the challenger could not."""
    rows = [{"features": FULL, "origin": f"A{n}", "dest": "B"} for n in range(40)]
    response = ask(Trial(release, failing(release), weight), body={"rows": rows})
    answers = response.json()["predictions"]
    assert response.status_code == 200
    assert {answer["release"] for answer in answers} == {"m:old"}
    assert len({answer["prediction"] for answer in answers}) == 1


def test_a_request_that_neither_takes_is_refused_as_the_champion_would(release: Release) -> None:
    response = ask(Trial(release, release, 100), body={"rows": [{"features": {**FULL, "temp": "hot"}}]})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "temp")


@pytest.mark.parametrize("path", ["/flights/nothing/predict", "/a/b/c/predict", "/predict", "//predict"])
def test_what_is_not_served_is_not_found(release: Release, path: str) -> None:
    assert ask(OneRelease(release, "m:1", "1"), path).status_code == 404


def test_a_body_over_the_limit_is_read_no_further(release: Release) -> None:
    """However long it claims to be, or goes on without saying so."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**20
            yield b" " * 2**20

    async def one() -> httpx.Response:
        async with client_of(OneRelease(release, "m:1", "1")) as (client, serving):
            response = await client.post(PREDICT, content=endless())
            assert (serving.admission.depth, serving.admission.held) == (0, 0)
            return response

    assert anyio.run(one).status_code == 413
    assert sent <= MAX_BODY + 2 * 2**20
