"""What crosses the wire says the same in every format, and nothing hostile in it costs more than a refusal."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import msgpack
import polars as pl
import pytest

from mlops_assets.serving.answers import Answers, Question, RowInputs
from mlops_assets.serving.plan import Fallback, Looked
from mlops_assets.serving.wire import formats as wire
from mlops_assets.serving.wire.problems import InvalidRequestError
from mlops_assets.serving.wire.raw import MAX_ROWS, Rows
from resources.releases import Variant

NOON = datetime(2013, 4, 1, 12, tzinfo=UTC)
ASKED: dict[str, Any] = {
    "rows": [{"origin": "EWR", "n": 1, "x": 1.5, "none": None, "yes": True}],
    "at": NOON.isoformat(),
}


def packed(asked: Any) -> bytes:
    data: bytes = msgpack.packb(asked)
    return data


def refused(body: bytes, content_type: str) -> tuple[int, str]:
    with pytest.raises(InvalidRequestError) as caught:
        wire.read(body, content_type)
    assert all(problem.fix for problem in caught.value.problems)
    return caught.value.status, caught.value.problems[0].problem


@pytest.mark.parametrize(
    ("content_type", "write"),
    [
        ("", json.dumps),
        ("application/json", json.dumps),
        ("Application/JSON; charset=utf-8", json.dumps),
        ("application/msgpack", packed),
        ("application/x-msgpack", packed),
    ],
)
def test_a_request_says_the_same_in_json_and_in_messagepack(content_type: str, write: Any) -> None:
    """However its content type is spelled; JSON where none is said."""
    body = write(ASKED)
    assert wire.read(body if isinstance(body, bytes) else body.encode(), content_type) == Rows(ASKED["rows"], NOON)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
def test_a_type_that_a_page_of_another_site_may_send_is_not_read(content_type: str) -> None:
    """415, and which types there are."""
    assert refused(json.dumps(ASKED).encode(), content_type) == (415, f"the content type {content_type!r} is not known")


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"rows": []}, "rows is missing or empty"),
        ({"rows": {"a": 1}}, "rows is missing or empty"),
        ({"rows": [{}, 5]}, "not an object"),
        ({"rows": [{}] * (MAX_ROWS + 1)}, f"{MAX_ROWS + 1} rows"),
        ({"rows": [{}], "when": 1}, "unknown field"),
        ({"rows": [{}], "at": "2013-04-01T12:00:00"}, "a time without a zone"),
        ([], "the body is not an object"),
        (5, "the body is not an object"),
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "application/msgpack"])
def test_a_malformed_request_is_refused_alike(asked: Any, problem: str, content_type: str) -> None:
    """In whatever it is written."""
    body = json.dumps(asked).encode() if content_type == wire.JSON else packed(asked)
    assert refused(body, content_type) == (422, problem)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"rows": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "application/json"),
        (b'{"rows": ' + b'{"a":' * 100_000, "application/json"),
        (b"\x91" * 100_000, "application/msgpack"),  # lists in lists
        (b"\xdd\xff\xff\xff\xff", "application/msgpack"),  # a list that claims 2**32 items
        (b"\xdf\xff\xff\xff\xff", "application/msgpack"),
        (b"\xc6\xff\xff\xff\xff", "application/msgpack"),
        (packed({"rows": [{}]}) + b"\x00", "application/msgpack"),
        (b"\x81\xa4rows\x91\x81\x01\x02", "application/msgpack"),  # a name that is a number
        (b"\x81\xa4rows\x91\x81\xa1a\xa1\xff", "application/msgpack"),  # text that is not UTF-8
        (b"", "application/msgpack"),
        (b"", "application/json"),
    ],
)
def test_what_claims_or_nests_without_end_is_refused(body: bytes, content_type: str) -> None:
    """Neither memory nor stack follows what a message says of itself."""
    status, problem = refused(body, content_type)
    assert status == 422 and problem.startswith(("the body is not", "rows is missing"))


@pytest.mark.parametrize(
    ("accept", "content_type", "kind"),
    [
        ("*/*", wire.JSON, wire.JSON),
        ("", "application/x-msgpack", wire.MSGPACK),
        ("*/*", wire.ARROW, wire.ARROW),
        ("application/x-msgpack", wire.JSON, wire.MSGPACK),
        ("text/html, application/vnd.apache.arrow.stream;q=0.9, application/json;q=0.5", wire.JSON, wire.ARROW),
        ("application/msgpack;q=0, application/json", wire.MSGPACK, wire.JSON),
        ("application/msgpack;q=x, text/html", wire.ARROW, wire.ARROW),
        ("text/html", "text/plain", wire.JSON),
        ("text/html", "application/x-msgpack", wire.MSGPACK),
        ("application/json, text/plain, */*", wire.JSON, wire.JSON),
    ],
)
def test_an_answer_is_of_the_kind_accepted_else_of_the_requests(accept: str, content_type: str, kind: str) -> None:
    """By quality where several are; JSON where nothing fits."""
    assert wire.wanted(accept, content_type) == kind


def answers(ids: list[str], role: Any = "champion", outputs: Any = None, fallbacks: Any = None) -> Answers:
    looked = None if fallbacks is None else [Looked([], {}, some) for some in fallbacks]
    return Answers(
        "flights/late",
        Variant(f"late:{role}", "7", 100, role),
        Question(NOON, ids, {}),
        (),
        RowInputs([()] * len(ids)),
        [float(len(one)) for one in ids],
        outputs or {},
        looked,
    )


COLD = Fallback("flights/weather", {"origin": "XXX"}, "no row")
PARTS = [
    ([1, 3], answers(["bb", "dddd"], "challenger", {"late": [True, None]})),
    ([0, 2], answers(["a", "ccc"], "champion", {"risk": ["low", "high"]}, [[], [COLD]])),
]
SAID = [("a", 1.0, "champion"), ("bb", 2.0, "challenger"), ("ccc", 3.0, "champion"), ("dddd", 4.0, "challenger")]


@pytest.mark.parametrize("read", [(wire.JSON, json.loads), (wire.MSGPACK, msgpack.unpackb)])
def test_answers_come_in_the_order_of_the_rows(read: Any) -> None:
    """Of several releases, each row's own outputs and fallbacks with it."""
    kind, load = read
    body, media_type = wire.write("flights/late", PARTS, kind)
    said = load(body)
    rows = said["predictions"]
    assert (media_type, said["model"]) == (kind, "flights/late")
    assert [(row["request_id"], row["prediction"], row["variant"]) for row in rows] == SAID
    assert rows[2] == {
        "request_id": "ccc", "prediction": 3.0, "risk": "high", "release": "late:champion", "version": "7",
        "variant": "champion",
        "fallbacks": [{"view": "flights/weather", "keys": {"origin": "XXX"}, "reason": "no row", "used": "nulls"}],
    }  # fmt: skip
    assert (rows[3]["late"], rows[3]["fallbacks"]) == (None, [])


def test_answers_as_a_table_hold_the_same() -> None:
    """One row an answer; an output that a release does not have is null; fallbacks are JSON text."""
    body, media_type = wire.write("flights/late", PARTS, wire.ARROW)
    table = pl.read_ipc_stream(BytesIO(body))
    rows = table.rows(named=True)
    assert media_type == wire.ARROW
    assert [(row["request_id"], row["prediction"], row["variant"]) for row in rows] == SAID
    assert [row["risk"] for row in rows] == ["low", None, "high", None]
    assert [row["late"] for row in rows] == [None, True, None, None]
    assert json.loads(rows[2]["fallbacks"])[0]["keys"] == {"origin": "XXX"} and rows[0]["fallbacks"] == "[]"


def test_one_release_answers_all_rows_in_its_order() -> None:
    """The usual case."""
    body, _ = wire.write("flights/late", [(None, answers(["x", "yy"]))], wire.JSON)
    assert [row["request_id"] for row in json.loads(body)["predictions"]] == ["x", "yy"]
