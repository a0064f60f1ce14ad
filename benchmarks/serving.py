"""Our endpoint against the servers that people use, and against the least that a Python server can do.

One XGBoost model of 100 trees and ten inputs on every server, one worker each, asked by wrk from 1, 16 and 64
connections, all in turn, several rounds. Every server is first shown to answer as the model itself does. Ours is asked
as the platform runs it: it validates, chooses the variant, writes every answer to the prediction log and counts it. It
is asked for rows that bring their features, as on the other servers, and for rows that bring a key alone: it then looks
the features up in two views of its embedded store.

Then batches of 1,000 rows, against the parsing of the same body and the model's own predict of the same array; and how
long a release takes to load, against the model file alone. Used at run time only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from rich.table import Table

from benchmarks import contenders, wrk
from benchmarks.batches import batch_figures
from benchmarks.contenders import Contender, Running
from benchmarks.harness import Figure, Measurement, UnequalResultsError, fresh_home, in_turn, seconds
from benchmarks.served_model import INPUTS, MODEL, Bundle, bundle, features, key, publish
from benchmarks.wrk import Bodies, FailedRequestsError, Load
from mlops_assets.serving.process import serve_command
from resources.environment import home

CLIENTS = (1, 16, 64)
TARGET_CLIENTS = 16
COLD_START_TARGET, TAIL_TARGET = 2.0, 1.0
SLUGS = {
    "bare FastAPI": "fastapi",
    "default Bento": "default_bento",
    "raw ASGI, ONNX Runtime": "raw",
    "mlflow models serve": "mlflow",
    "MLServer": "mlserver",
}
THROUGHPUT = {"bare FastAPI": 1 / 1.5, "default Bento": 1 / 5, "raw ASGI, ONNX Runtime": 1 / 0.8}
LOOKED_UP_TARGET = 1.0
TOLERANCE = 1e-4
ROWS = 64  # different bodies that are sent in turn
OURS, OURS_LOOKED_UP = "ours", "ours, looking up"


@dataclass(frozen=True)
class Seen:
    """One run of load on one server, and what it cost the server."""

    load: Load
    cpu: float  # seconds of processor time in all its processes

    @property
    def per_request(self) -> float:
        """Microseconds from one answer to the next."""
        return 1e6 / self.load.per_second

    @property
    def cpu_per_request(self) -> float:
        return 1e6 * self.cpu / self.load.requests


Results = Mapping[tuple[str, int], Sequence[Seen]]


def measure(rounds: int = 3, span: float = 2, batch_rounds: int = 5) -> Measurement:
    """About five minutes; `span` is how many seconds a run of wrk takes."""
    if not wrk.available():
        return Measurement([], [wrk.MISSING])
    environment = home() / "benchmarks" / "mlserver"
    missing = contenders.installed_mlserver(environment)
    with fresh_home() as directory:
        model = bundle(directory / "bundle")
        model.release("1")
        published = publish()
        given = features(ROWS, seed=1)
        expected = {OURS: own_predictions(model, given.to_numpy())}
        expected[OURS_LOOKED_UP] = own_predictions(model, published.head(ROWS).to_numpy())
        others = peers(model, directory, None if missing else environment)
        with contenders.started([ours(), *others], given.rows(), directory) as running:
            sides = [*running, looking_up(running[0])]
            for one in sides:
                require_right(one, expected.get(one.contender.name, expected[OURS]))
            results = contend(sides, directory / "bodies", rounds, span)
            batches = batch_figures(model, running[0].url, directory / "batches", batch_rounds)
        figures = [*load_figures(results), *batches, *cold_start(model, batch_rounds * 3)]
    return Measurement(figures, [shown(results), *([f"MLServer was not measured: {missing}."] if missing else [])])


def ours() -> Contender:
    """A server that follows the release records, as `make up` runs it."""
    return Contender(
        OURS,
        f"/{MODEL}/predict",
        serve_command,
        lambda row: {"rows": [{"features": dict(zip(INPUTS, row, strict=True))}]},
        ours_read,
    )


def ours_read(answer: Any) -> list[float]:
    return [one["prediction"] for one in answer["predictions"]]


def looking_up(running: Running) -> Running:
    """The same server, asked by key."""
    asked = Contender(OURS_LOOKED_UP, "", running.contender.prepare, lambda row: {"rows": [{"key": row[0]}]}, ours_read)
    return Running(asked, running.url, running.pid, [(key(number),) for number in range(ROWS)])


def peers(model: Bundle, directory: Path, mlserver: Path | None) -> list[Contender]:
    found = [
        contenders.fastapi(model.native),
        contenders.default_bento(model.native),
        *([contenders.raw_asgi(model.onnx)] if model.onnx.exists() else []),
        contenders.mlflow(model.native, directory / "mlflow"),
    ]
    return [*found, contenders.mlserver(model.native, directory / "mlserver", mlserver)] if mlserver else found


def own_predictions(model: Bundle, rows: np.ndarray) -> list[float]:
    predictions: list[float] = model.booster().inplace_predict(rows.astype(np.float32)).tolist()
    return predictions


def require_right(running: Running, expected: Sequence[float]) -> None:
    """Raises UnequalResultsError unless the server answers as the model does."""
    for row, right in zip(running.rows, expected, strict=True):
        if abs((given := running.ask(row)) - right) > TOLERANCE:
            raise UnequalResultsError.of(f"the prediction of {running.contender.name}", given, right)


def contend(running: Sequence[Running], bodies: Path, rounds: int, span: float) -> dict[tuple[str, int], list[Seen]]:
    """Every server under every load, in turn, every other round from the last to the first; a second to warm up."""
    written = {one.contender.name: one.bodies(bodies) for one in running}
    results: dict[tuple[str, int], list[Seen]] = {}
    for one in running:
        seen(one, written[one.contender.name], TARGET_CLIENTS, 1)
    for clients in CLIENTS:
        for number in range(rounds):
            for one in running if number % 2 == 0 else running[::-1]:
                name = one.contender.name
                results.setdefault((name, clients), []).append(seen(one, written[name], clients, span))
    return results


def seen(running: Running, bodies: Bodies, clients: int, span: float) -> Seen:
    """Raises FailedRequestsError."""
    before = processor_time(running.pid)
    load = wrk.run(running.url, bodies, clients, span)
    if load.failed:
        raise FailedRequestsError.of(running.contender.name, clients, load)
    return Seen(load, processor_time(running.pid) - before)


def processor_time(pid: int) -> float:
    """Of a process and all below it."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def load_figures(results: Results) -> list[Figure]:
    """Time a request and the 99th percentile, ours to each peer's; those of throughput have targets at 16 clients."""
    names = [name for name in SLUGS if (name, TARGET_CLIENTS) in results]
    figures = []
    for clients in CLIENTS:
        at_target = clients == TARGET_CLIENTS
        for name in names:
            target = THROUGHPUT.get(name) if at_target else None
            figures.append(_time(results, OURS, name, clients, f"serving.{clients}_clients.{SLUGS[name]}", target))
        looked = LOOKED_UP_TARGET if at_target else None
        figures.append(
            _time(results, OURS_LOOKED_UP, "bare FastAPI", clients, f"serving.{clients}_clients.looking_up", looked)
        )
        figures.append(_tail(results, "bare FastAPI", clients))
    return figures


def _time(results: Results, ours: str, peer: str, clients: int, name: str, target: float | None) -> Figure:
    taken = [median(one.per_request for one in results[side, clients]) for side in (ours, peer)]
    return Figure(name, taken[0], taken[1], peer, unit="us", target=target)


def _tail(results: Results, peer: str, clients: int) -> Figure:
    taken = [median(one.load.p99 for one in results[side, clients]) for side in (OURS, peer)]
    return Figure(f"serving.{clients}_clients.p99", taken[0], taken[1], peer, unit="us", target=TAIL_TARGET)


def cold_start(model: Bundle, rounds: int) -> list[Figure]:
    """A release read, checked against its golden rows and warm, in a process that has its libraries loaded."""
    from mlops_assets.serving.bundle import Release

    def release() -> object:
        return Release.load(model.directory)

    def alone() -> object:
        return model.booster()

    release(), alone()
    taken = in_turn(lambda: seconds(release), lambda: seconds(alone), rounds)
    return [Figure("serving.cold_start", 1e3 * taken[0], 1e3 * taken[1], "the model file", "ms", COLD_START_TARGET)]


def shown(results: Results) -> Table:
    """Everything that was seen, as people read it."""
    columns = ("server", "clients", "requests/s", "p50 ms", "p99 ms", "processor us a request")
    table = Table(*columns, title="medians of the rounds", title_justify="left")
    for (name, clients), runs in results.items():
        numbers = (
            f"{median(one.load.per_second for one in runs):,.0f}",
            f"{median(one.load.p50 for one in runs) / 1e3:.2f}",
            f"{median(one.load.p99 for one in runs) / 1e3:.2f}",
            f"{median(one.cpu_per_request for one in runs):.0f}",
        )
        table.add_row(name, str(clients), *numbers)
    return table
