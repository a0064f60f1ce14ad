"""A request of 1,000 rows, in each of the formats, against the least that it could cost.

That is: the same bytes parsed into an array by the quickest library for them, and the model's own predict of that
array, in a process without any server. Ours goes over HTTP, checks every value, is logged, and writes its answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import orjson
import polars as pl

from benchmarks import wrk
from benchmarks.harness import Figure, UnequalResultsError, in_turn
from benchmarks.served_model import INPUTS, Bundle, features
from benchmarks.wrk import Bodies, FailedRequestsError

ROWS = 1_000
TARGET = 1.3
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Format:
    """How rows are written, how somebody would read them into an array, and what an answer in it predicts."""

    media_type: str
    write: Callable[[pl.DataFrame], bytes]
    parse: Callable[[bytes], np.ndarray]
    read: Callable[[bytes], list[float]]


def batch_figures(model: Bundle, url: str, bodies: Path, rounds: int) -> list[Figure]:
    """Milliseconds a request from one connection; what it answers is compared first."""
    rows, booster = features(ROWS, seed=2), model.booster()
    expected = booster.inplace_predict(rows.to_numpy().astype(np.float32))
    return [_figure(name, one, rows, booster, expected, url, bodies / name, rounds) for name, one in FORMATS.items()]


def _figure(
    name: str,
    one: Format,
    rows: pl.DataFrame,
    booster: Any,
    expected: np.ndarray,
    url: str,
    bodies: Path,
    rounds: int,
) -> Figure:
    body = one.write(rows)
    answer = httpx.post(url, content=body, headers={"Content-Type": one.media_type}, timeout=30).raise_for_status()
    _require_close(name, one.read(answer.content), expected)
    sent = Bodies.written(bodies, [body], one.media_type)
    taken = in_turn(
        partial(_by_request, url, sent),
        partial(_by_call, lambda: booster.inplace_predict(one.parse(body))),
        rounds,
    )
    return Figure(f"serving.batch_1000.{name}", 1e3 * taken[0], 1e3 * taken[1], "parse and predict", "ms", TARGET)


def _by_request(url: str, bodies: Bodies) -> float:
    load = wrk.run(url, bodies, 1, 1)
    if load.failed:
        raise FailedRequestsError.of("ours", 1, load)
    return 1 / load.per_second


def _by_call(work: Callable[[], object], stroke: float = 0.5) -> float:
    """Seconds a call, of as many as go into a stroke."""
    calls, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < stroke:
        work()
        calls += 1
    return taken / calls


def _require_close(what: str, given: Sequence[float], expected: np.ndarray) -> None:
    if len(given) != len(expected) or np.abs(np.subtract(given, expected)).max() > TOLERANCE:
        raise UnequalResultsError.of(f"the batch as {what}", given[:3], expected[:3])


def _rows(frame: pl.DataFrame) -> dict[str, Any]:
    return {"rows": [{"features": row} for row in frame.to_dicts()]}


def _array(asked: dict[str, Any]) -> np.ndarray:
    return np.array([[row["features"][name] for name in INPUTS] for row in asked["rows"]], dtype=np.float32)


def _predictions(answer: dict[str, Any]) -> list[float]:
    return [one["prediction"] for one in answer["predictions"]]


def _arrow(frame: pl.DataFrame) -> bytes:
    stream = BytesIO()
    frame.write_ipc_stream(stream)
    return stream.getvalue()


FORMATS = {
    "json": Format(
        "application/json",
        lambda frame: orjson.dumps(_rows(frame)),
        lambda body: _array(orjson.loads(body)),
        lambda answer: _predictions(orjson.loads(answer)),
    ),
    "msgpack": Format(
        "application/msgpack",
        lambda frame: bytes(msgpack.packb(_rows(frame))),
        lambda body: _array(msgpack.unpackb(body)),
        lambda answer: _predictions(msgpack.unpackb(answer)),
    ),
    "arrow": Format(
        "application/vnd.apache.arrow.stream",
        _arrow,
        lambda body: pl.read_ipc_stream(body).select(INPUTS).to_numpy().astype(np.float32),
        lambda answer: pl.read_ipc_stream(answer)["prediction"].to_list(),
    ),
}
