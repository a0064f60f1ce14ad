"""The page says what the endpoint does: its schemas hold for real answers, and its examples answer when tried."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import anyio
import httpx
import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from mlops_assets.fields import Bool, Float64, String
from mlops_assets.serving.app import Serving, create_app
from mlops_assets.serving.bundle import Release
from mlops_assets.serving.openapi import examples, openapi
from mlops_assets.serving.plan import EmptyStore
from mlops_assets.serving.prediction_log import NoLog
from mlops_assets.serving.releases import OneRelease

PREDICT = "/flights/late_arrival/predict"


class Outputs:
    """What post-processing looks like from here."""

    fields: ClassVar = {"late": Bool("Likely late"), "risk": String("Band"), "minutes": Float64("Delay", "min", 0)}

    def outputs_of(self, *_: Any) -> dict[str, list[Any]]:
        return {"late": [True], "risk": [None], "minutes": [12.5]}


@pytest.fixture(scope="module")
def release(make_bundle: Callable[..., Path]) -> Release:
    return replace(Release.load(make_bundle()), postprocess=Outputs())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def document(release: Release) -> dict[str, Any]:
    return openapi(OneRelease(release, "flights_late_arrival:abc", "7"))


def post(release: Release, path: str, body: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        releases = OneRelease(release, "flights_late_arrival:abc", "7")
        app = create_app(lambda: Serving(releases, EmptyStore(), NoLog()))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")
        async with app.router.lifespan_context(app), client:
            return await client.post(path, json=body)

    return anyio.run(one)


def requests(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Path, operation and value of every JSON example."""
    for path, operations in document["paths"].items():
        if (operation := operations.get("post")) is not None:
            for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
                yield path, operation, example["value"]


def schema(document: dict[str, Any], part: dict[str, Any]) -> OAS31Validator:
    """What validates a value against one schema of the document."""
    return OAS31Validator({**part["content"]["application/json"]["schema"], "components": document["components"]})


def test_it_is_an_openapi_document(document: dict[str, Any]) -> None:
    """By the standard's own schema; also as JSON, and for a process that serves nothing."""
    validate(json.loads(json.dumps(document)))
    paths = document["paths"]
    assert {"/readyz", "/metrics", "/v2", "/v2/models/flights.late_arrival/infer", PREDICT} <= paths.keys()


def test_every_example_answers_when_tried_and_its_answer_is_as_described(
    document: dict[str, Any], release: Release
) -> None:
    """Requests and answers alike are valid by the schemas beside them, outputs of post-processing too."""
    tried = 0
    for path, operation, value in requests(document):
        schema(document, operation["requestBody"]).validate(value)
        response = post(release, path, value)
        assert response.status_code == 200, response.text
        schema(document, operation["responses"]["200"]).validate(response.json())
        tried += 1
    assert tried == 3


def test_the_example_by_features_is_the_first_golden_row(release: Release) -> None:
    """Its answer is known."""
    (answer,) = post(release, PREDICT, examples(release)["by features"]).json()["predictions"]
    assert answer["prediction"] == pytest.approx(release.golden.predictions[0], abs=1e-6)
    assert (answer["late"], answer["risk"], answer["minutes"]) == (True, None, 12.5)


def test_fields_are_named_with_their_types_meanings_and_ranges(document: dict[str, Any], release: Release) -> None:
    """What is enforced is a bound; what training saw is told; categories are examples, for others are allowed."""
    request = document["paths"][PREDICT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    keyed, featured = request["properties"]["rows"]["items"]["anyOf"]
    assert keyed["properties"]["distance"] == {
        "type": ["number", "null"], "format": "double", "description": "Miles to fly [mi]", "minimum": 0,
        "maximum": 6000,
    }  # fmt: skip
    assert {*keyed["required"]} == {"origin", "dest", "distance", "carrier", "seats", "holiday"}
    features = featured["properties"]["features"]
    assert features["required"] == list(release.plan.inputs)
    assert features["properties"]["distance"]["description"] == "Miles to fly [mi], usually between 0 and 6000"
    assert features["properties"]["carrier"]["examples"] == ["AA", "DL", "UA"]
    answer = document["paths"][PREDICT]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    row = answer["properties"]["predictions"]["items"]["properties"]
    assert row["minutes"] == {
        "type": ["number", "null"], "format": "double", "description": "Delay [min]", "minimum": 0,
    }  # fmt: skip


@pytest.mark.parametrize("path", [PREDICT, "/v2/models/flights.late_arrival/infer"])
def test_a_refusal_is_as_described(document: dict[str, Any], release: Release, path: str) -> None:
    """Each of them has its meaning on the page; the body of this one is valid by its schema."""
    responses = document["paths"][path]["post"]["responses"]
    assert {"404", "413", "415", "422", "429", "500", "503", "504"} <= responses.keys()
    assert "Retry-After" in responses["429"]["headers"]
    response = post(release, path, {"rows": [{}]} if path == PREDICT else {"inputs": []})
    assert response.status_code == 422
    schema(document, responses["422"]).validate(response.json())
