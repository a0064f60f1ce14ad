"""Requests and answers as they cross the wire: JSON, MessagePack, Arrow.

    {"rows": [{...}, ...], "at": "2013-04-01T12:00:00+00:00"}   in JSON or MessagePack; `at` is now when left out
    a table, one row each (`arrow.py`)                          in Arrow's stream format

What comes is bounded before it is built: rows here, bytes by whoever read the body. The content type must be named
when it is not JSON; so no page of another site can make a browser ask in the user's name without asking us first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from mlops_assets.serving.answers import Answers
from mlops_assets.serving.problems import InvalidRequestError, Problem
from mlops_assets.serving.raw import MAX_ROWS, Raw, Rows

JSON = "application/json"
MSGPACK = "application/msgpack"
ARROW = "application/vnd.apache.arrow.stream"
EXAMPLE = '{"rows": [{...}], "at": "2013-04-01T12:00:00+00:00"}'
Part = tuple[Sequence[int] | None, Answers]  # the rows of the request it answers, None for all of them


def read(body: bytes, content_type: str = JSON) -> Raw:
    """What a body says. InvalidRequestError when it is not that, with status 415 when its type is none of ours."""
    reader = READERS.get(content_type) or READERS.get(media_type(content_type))
    if reader is None:
        raise InvalidRequestError.of(
            f"the content type {content_type!r} is not known", f"Send one of: {', '.join(READERS)}.", status=415
        )
    return reader(body)


def media_type(header: str) -> str:
    """`application/json` of `Application/JSON; charset=utf-8`; JSON when nothing is said."""
    return header.partition(";")[0].strip().lower() or JSON


def _read_json(body: bytes) -> Rows:
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError.of(f"the body is not JSON ({error})", f"Send {EXAMPLE}.") from error
    return _rows_of(asked)


READERS: dict[str, Callable[[bytes], Raw]] = {JSON: _read_json}


def _rows_of(asked: Any) -> Rows:
    if not isinstance(asked, dict):
        raise InvalidRequestError.of("the body is not an object", f"Send {EXAMPLE}.")
    if unknown := asked.keys() - {"rows", "at"}:
        raise InvalidRequestError.of("unknown field", "Use rows and at.", ", ".join(sorted(map(str, unknown))))
    return Rows(_rows(asked.get("rows")), moment(asked.get("at")))


def _rows(rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not rows:
        raise InvalidRequestError.of("rows is missing or empty", f"Send {EXAMPLE}.", "rows")
    refuse_too_many(len(rows))
    if {*map(type, rows)} != {dict}:
        wrong = [index for index, row in enumerate(rows) if type(row) is not dict]
        raise InvalidRequestError([Problem("not an object", f"Send {EXAMPLE}.", None, index) for index in wrong])
    return rows


def refuse_too_many(rows: int) -> None:
    if rows > MAX_ROWS:
        raise InvalidRequestError.of(f"{rows} rows", f"Send at most {MAX_ROWS} rows in a request.", "rows")


def moment(at: Any) -> datetime:
    """The time a request asks about, in UTC: now, unless it says another."""
    if at is None:
        return datetime.now(UTC)
    try:
        asked = datetime.fromisoformat(at)
        if asked.tzinfo is not None:
            return asked.astimezone(UTC)
        problem = "a time without a zone"
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"not a time ({error})"
    raise InvalidRequestError.of(problem, "Write ISO-8601 with a zone, e.g. 2013-04-01T12:00:00+00:00.", "at")


def write(model: str, parts: Sequence[Part], accept: str = JSON) -> tuple[bytes, str]:
    """The answers in the order of the request's rows, and the media type that they are written in."""
    writer = WRITERS.get(accept)
    return (writer or _write_json)(model, parts), accept if writer else JSON


def _write_json(model: str, parts: Sequence[Part]) -> bytes:
    return orjson.dumps({"model": model, "predictions": shown(parts)})


WRITERS: dict[str, Callable[[str, Sequence[Part]], bytes]] = {JSON: _write_json}


def shown(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Each answer as an object, in the order of the request's rows."""
    if len(parts) == 1 and parts[0][0] is None:
        return _shown(parts[0][1])
    placed = {place: one for places, part in parts for place, one in _placed(places, part)}
    return [placed[place] for place in sorted(placed)]


def _placed(places: Sequence[int] | None, part: Answers) -> Any:
    return zip(range(len(part.predictions)) if places is None else places, _shown(part), strict=True)


def _shown(part: Answers) -> list[dict[str, Any]]:
    variant = part.variant
    release, version, role = variant.release, variant.version, variant.role
    none: list[Any] = []
    answers: list[dict[str, Any]] = [
        {
            "request_id": request_id,
            "prediction": prediction,
            "release": release,
            "version": version,
            "variant": role,
            "fallbacks": none,
        }
        for request_id, prediction in zip(part.question.ids, part.predictions, strict=True)
    ]
    if part.looked is not None:
        for answer, looked in zip(answers, part.looked, strict=True):
            answer["fallbacks"] = looked.fallbacks
    for name, column in part.outputs.items():
        for answer, value in zip(answers, column, strict=True):
            answer[name] = value
    return answers
