"""Requests and answers as they cross the wire: JSON, MessagePack, Arrow.

    {"rows": [{...}, ...], "at": "2013-04-01T12:00:00+00:00"}   in JSON or MessagePack; `at` is now when left out
    a table, one row each (`arrow.py`)                          in Arrow's stream format

What comes is bounded before it is built: rows here, bytes by whoever read the body. The content type must be named
when it is not JSON; so no page of another site can make a browser ask in the user's name without asking us first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import orjson

from mlops_assets.serving.wire.problems import InvalidRequestError, Problem
from mlops_assets.serving.wire.raw import MAX_ROWS, Raw, Rows
from mlops_assets.serving.wire.replies import Part, reply_rows

JSON = "application/json"
MSGPACK = "application/msgpack"
ARROW = "application/vnd.apache.arrow.stream"
ALIASES = {kind: kind for kind in (JSON, MSGPACK, ARROW)} | {"application/x-msgpack": MSGPACK}
EXAMPLE = '{"rows": [{...}], "at": "2013-04-01T12:00:00+00:00"}'


def read(body: bytes, content_type: str = JSON) -> Raw:
    """What a body says. InvalidRequestError when it is not that, with status 415 when its type is none of ours."""
    reader = READERS.get(content_type) or READERS.get(ALIASES.get(media_type(content_type), ""))
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


def _read_msgpack(body: bytes) -> Rows:
    import msgpack

    try:
        asked = msgpack.unpackb(body)
    except ValueError as error:
        raise InvalidRequestError.of(f"the body is not MessagePack ({error})", f"Send {EXAMPLE}.") from error
    return _rows_of(asked)


def _read_arrow(body: bytes) -> Raw:
    from mlops_assets.serving.wire.arrow import read_arrow

    return read_arrow(body)


READERS: dict[str, Callable[[bytes], Raw]] = {JSON: _read_json, MSGPACK: _read_msgpack, ARROW: _read_arrow}


def _rows_of(asked: Any) -> Rows:
    if type(asked) is not dict:
        raise InvalidRequestError.of("the body is not an object", f"Send {EXAMPLE}.")
    if len(asked) > ("rows" in asked) + ("at" in asked):
        unknown = ", ".join(sorted(map(str, asked.keys() - {"rows", "at"})))
        raise InvalidRequestError.of("unknown field", "Use rows and at.", unknown)
    return Rows(_rows(asked.get("rows")), moment(asked.get("at")))


def _rows(rows: Any) -> list[dict[str, Any]]:
    if type(rows) is not list or not rows:
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
    """The answers in the order of the request's rows, and the media type that they are written in.

    `accept` is a media type of `WRITERS`, or a header: see `wanted`.
    """
    writer = WRITERS.get(accept)
    if writer is None:
        writer = WRITERS[accept := wanted(accept)]
    return writer(model, parts), accept


def wanted(accept: str, content_type: str = JSON) -> str:
    """The media type to answer in: the best that `Accept` names and we have, else that of the request."""
    if accept in WRITERS:
        return accept
    if accept not in ("*/*", ""):
        for offer in sorted(accept.split(","), key=_quality, reverse=True):
            if _quality(offer) and (kind := ALIASES.get(media_type(offer))):
                return kind
    return content_type if content_type in WRITERS else ALIASES.get(media_type(content_type), JSON)


def _quality(offer: str) -> float:
    """The `q` of one offer of an Accept header."""
    _, _, quality = offer.replace(" ", "").partition(";q=")
    try:
        return float(quality.partition(";")[0] or 1)
    except ValueError:
        return 0.0


def _write_json(model: str, parts: Sequence[Part]) -> bytes:
    return orjson.dumps({"model": model, "predictions": reply_rows(parts)})


def _write_msgpack(model: str, parts: Sequence[Part]) -> bytes:
    import msgpack

    packed: bytes = msgpack.packb({"model": model, "predictions": reply_rows(parts)}, default=asdict)
    return packed


def _write_arrow(_: str, parts: Sequence[Part]) -> bytes:
    from mlops_assets.serving.wire.arrow import write_arrow

    return write_arrow(parts)


WRITERS: dict[str, Callable[[str, Sequence[Part]], bytes]] = {
    JSON: _write_json,
    MSGPACK: _write_msgpack,
    ARROW: _write_arrow,
}
