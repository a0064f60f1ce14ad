"""The route that answers, as plain ASGI: from a body to the answers' bytes, once for every format.

A framework's request, response and middleware objects cost several times what the answer does. What is answered
quickly is answered on the event loop; large requests and slow models in a thread, where they keep no other waiting.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

import anyio.to_thread
import orjson

from mlops_assets.serving.admission import RETRY_SECONDS, in_time
from mlops_assets.serving.wire import formats as wire
from mlops_assets.serving.wire.problems import InvalidRequestError, Problem
from mlops_assets.serving.wire.raw import MAX_BODY
from mlops_assets.serving.wire.replies import Part
from resources.online.packed_store import OnlineStoreUnavailableError

if TYPE_CHECKING:
    from starlette.types import Receive, Send

    from mlops_assets.serving.answers import Answers
    from mlops_assets.serving.app import Serving
    from mlops_assets.serving.releases import Served
    from mlops_assets.serving.releases.breaker import CanaryBreaker
    from mlops_assets.serving.releases.traffic import Traffic
    from mlops_assets.serving.wire.raw import Raw

INLINE_BYTES = 8 * 1024  # some fifty rows; beyond it the event loop would keep others waiting
JSON = (b"content-type", b"application/json")
Header = tuple[bytes, bytes]
Headers = dict[bytes, bytes]
Reply = tuple[int, list[Header], bytes]  # status, headers, content
logger = logging.getLogger(__name__)


class Dialect(Protocol):
    """How rows come in, and answers and refusals go out."""

    def traffic(self, traffic: Traffic) -> Traffic:
        """Who may answer, of all that are served."""
        ...

    def read(self, body: bytes, headers: Headers, traffic: Traffic) -> Raw:
        """Raises InvalidRequestError."""
        ...

    def write(self, model: str, parts: Sequence[Part], headers: Headers) -> tuple[bytes, list[Header]]:
        """The answers' bytes, and the headers that say what they are."""
        ...

    def refuse(self, error: InvalidRequestError) -> bytes:
        """A JSON object that says what is wrong."""
        ...


class Native:
    """Our own requests: rows as JSON, MessagePack or Arrow."""

    def traffic(self, traffic: Traffic) -> Traffic:
        return traffic

    def read(self, body: bytes, headers: Headers, traffic: Traffic) -> Raw:  # noqa: ARG002 - as the protocol has it
        return wire.read(body, headers.get(b"content-type", b"").decode("latin-1"))

    def write(self, model: str, parts: Sequence[Part], headers: Headers) -> tuple[bytes, list[Header]]:
        accept, content_type = headers.get(b"accept", b"*/*"), headers.get(b"content-type", b"")
        wanted = wire.wanted(accept.decode("latin-1"), content_type.decode("latin-1"))
        content, media_type = wire.write(model, parts, wanted)
        return content, [JSON if media_type == wire.JSON else (b"content-type", media_type.encode())]

    def refuse(self, error: InvalidRequestError) -> bytes:
        return orjson.dumps(error.to_json())


NATIVE = Native()


class ClientGoneError(Exception):
    """The client hung up before its body was whole."""


@dataclass(slots=True)
class Asked:
    """One request for a model, and when it arrived (by `perf_counter`)."""

    model: str
    headers: Headers
    dialect: Dialect = NATIVE
    arrived: float = field(default_factory=perf_counter)

    @property
    def id(self) -> str:
        return self.headers.get(b"x-request-id", b"").decode("latin-1")

    def deadline_ms(self, longest: float) -> float:
        """The model's own, or less where the caller says so."""
        given = self.headers.get(b"x-deadline-ms")
        if given is None:
            return longest
        try:
            return min(float(given), longest)
        except ValueError as error:
            raise InvalidRequestError.of(
                f"x-deadline-ms is {given.decode('latin-1')!r}", "Give milliseconds, e.g. 250.", "x-deadline-ms"
            ) from error


def prompt(serving: Serving, asked: Asked, body: bytes) -> Reply | None:
    """What `predict` answers, for who has the whole body and cannot wait; None where an answer may take its time."""
    served = serving.releases.served(asked.model)
    traffic = served.traffic if served is not None else None
    if served is None or traffic is None or not traffic.quick or not body or len(body) > INLINE_BYTES:
        return None
    status, size, queue = 200, 0, serving.admission
    try:
        queue.enter()
        queue.hold(len(body))
        size = len(body)
        parts, content, headers = _answered(serving, asked, asked.dialect.traffic(traffic), body)
        _account(serving, served, parts, perf_counter() - asked.arrived)
    except Exception as error:  # noqa: BLE001  as in `predict`
        status, headers, content = _refused(asked, error)
    finally:
        queue.leave(size)
    return _reply(serving, asked, status, headers, content)


async def predict(serving: Serving, asked: Asked, receive: Receive, send: Send) -> None:
    """Answer one request; everything that can go wrong becomes an answer that says so."""
    status, size, queue = 200, 0, serving.admission
    try:
        queue.enter()
        message = await receive()
        body = message.get("body", b"")
        if message.get("more_body") or not body:
            body = await _rest(message, receive)
        queue.hold(len(body))
        size = len(body)
        served = serving.state(asked.model)
        traffic = asked.dialect.traffic(served.traffic or await woken(serving, asked.model, served))
        if size <= INLINE_BYTES and traffic.quick:
            parts, content, headers = _answered(serving, asked, traffic, body)
        else:
            work = partial(_answered, serving, asked, traffic, body)
            parts, content, headers = await anyio.to_thread.run_sync(work, limiter=serving.threads)
        _account(serving, served, parts, perf_counter() - asked.arrived)
    except ClientGoneError:
        return
    except Exception as error:  # noqa: BLE001  whatever a model raises becomes an answer, and a line of the log
        status, headers, content = _refused(asked, error)
    finally:
        queue.leave(size)
    status, headers, content = _reply(serving, asked, status, headers, content)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _reply(serving: Serving, asked: Asked, status: int, headers: list[Header], content: bytes) -> Reply:
    """An answer as it is sent, counted and, where that is asked for, logged."""
    serving.metrics.status(asked.model, status)
    if b"x-request-id" in asked.headers:
        headers.append((b"x-request-id", asked.headers[b"x-request-id"]))
    headers.append((b"content-length", b"%d" % len(content)))
    if serving.access_log:
        spent = round((perf_counter() - asked.arrived) * 1000, 3)
        told = {"request_id": asked.id, "model": asked.model, "status": status, "ms": spent}
        logger.info("%s %d", asked.model, status, extra=told)
    return status, headers, content


def _refused(asked: Asked, error: Exception) -> Reply:
    refusal = _refusal(asked, error)
    return refusal.status, _headers_of(refusal), asked.dialect.refuse(refusal)


def _answered(
    serving: Serving, asked: Asked, traffic: Traffic, body: bytes
) -> tuple[Sequence[Part], bytes, list[Header]]:
    in_time(asked.arrived, asked.deadline_ms(traffic.champion.plan.deadline_ms))
    dialect = asked.dialect
    parts = serving.answer(asked.model, traffic, dialect.read(body, asked.headers, traffic))
    return parts, *dialect.write(asked.model, parts, asked.headers)


def _account(serving: Serving, served: Served, parts: Sequence[Part], seconds: float) -> None:
    """Log and count what was answered, and tell the shadow what was asked; none of it waits."""
    for _, answers in parts:
        answers.latency_ms = seconds * 1000
        serving.log.write(answers)
        serving.metrics.answered(answers, seconds)
        if served.breaker is not None:
            _observe(served.breaker, answers)
        if served.shadow is not None:
            served.shadow.tell(answers.question, answers.names)


def _observe(breaker: CanaryBreaker, answers: Answers) -> None:
    """By the time of its own stages: what else was asked in the same request, or waited before it, is not its doing."""
    failed = answers.instead_of is not None
    breaker.observe("challenger" if failed else answers.variant.role, sum(answers.stages), failed)


async def woken(serving: Serving, model: str, served: Served) -> Traffic:
    """A model that sleeps is loaded first; 503 for one that has nothing to answer with."""
    if served.asleep:
        served = await anyio.to_thread.run_sync(serving.releases.wake, model, limiter=serving.threads)
    if served.traffic is None:
        raise InvalidRequestError.of(
            f"{model} has no release that can answer", f"Look at /{model}/release for the reason.", "model", 503
        )
    return served.traffic


async def _rest(message: Any, receive: Receive) -> bytes:
    """A body that comes in parts, read no further than the limit whatever its header claims."""
    parts: list[bytes] = []
    size = 0
    while message["type"] != "http.disconnect":
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise InvalidRequestError(
                [Problem(f"the body is over {MAX_BODY // 2**20} MiB", "Send fewer rows in a request.")], 413
            )
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()
    raise ClientGoneError


def _refusal(asked: Asked, error: Exception) -> InvalidRequestError:
    if isinstance(error, InvalidRequestError):
        return error
    if isinstance(error, OnlineStoreUnavailableError):  # rows that bring their own features are still answered
        return InvalidRequestError.of(
            str(error), "Ask again in a moment, or send all inputs under features.", None, 503
        )
    logger.error("a request of %s failed", asked.model, exc_info=error, extra={"request_id": asked.id})
    return InvalidRequestError.of("the model failed to answer", "The endpoint's log has the reason.", None, 500)


def _headers_of(refusal: InvalidRequestError) -> list[Header]:
    again = [(b"retry-after", b"%d" % RETRY_SECONDS)] if refusal.status in (429, 503) else []
    return [JSON, *again]
