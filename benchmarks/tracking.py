"""MLflow at the size of years, with our searches, indices and spool, and as it comes; on SQLite and on PostgreSQL.

An experiment of 100,000 runs and models of up to 100,000 versions; every answer of ours is shown to be MLflow's before
it is timed. MLflow's order by a metric may take minutes: it is given a bound, and what reached it is reported as such.
The loop is a real training, with a call a round; the peers are the same loop without any, and MLflow's own calls.

`python -m benchmarks.tracking --runs 10000` is the same in small, in about two minutes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Figure, Measurement, fresh_home, require_equal, table
from benchmarks.tracking_backend import (
    EXPERIMENT,
    EXPERIMENT_ID,
    HISTORY,
    MODEL,
    add_versions,
    fill,
    new_database,
    postgres_server,
    run_id,
    settled,
)
from resources.mlflow import MlflowResource

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRIC = "holdout_roc_auc"
PAGE = 20
BOUND_SECONDS = 60
OURS_TIMES, STOCK_TIMES = 100, 8
ROUNDS, ROWS, COLUMNS, TRAININGS = 200, 30_000, 20, 3
FILTER_TARGET, ORDER_TARGET, FLAT_TARGET, LOOP_TARGET = 1 / 20, 1 / 200, 2.0, 1.02
Ask = Callable[[int], Any]


@dataclass(frozen=True)
class Question:
    """One thing that people ask of MLflow; both sides get it with the same numbers."""

    name: str
    ours: Ask
    stock: Ask
    target: float | None = None
    searches: bool = False


@dataclass(frozen=True)
class Times:
    """Seconds of one side; `bounded` when the bound was reached."""

    seconds: Sequence[float]
    bounded: bool = False

    def at(self, share: float) -> float:
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    def told(self, share: float) -> str:
        return f"{'> ' if self.bounded else ''}{self.at(share) * 1000:,.2f}"


def measure(runs: int = 100_000) -> Measurement:
    """About eight minutes on two cores."""
    figures, details = loop_figures()
    with fresh_home() as directory:
        found, shown = scale_figures("sqlite", *sqlite_sides(directory, runs), runs)
        figures, details = [*figures, *found], [*details, shown]
    with fresh_home(), postgres_server() as server:
        if server is None:
            details.append("No PostgreSQL is installed: SQLite alone was measured.")
        else:
            found, shown = scale_figures("postgresql", *postgres_sides(server, runs), runs)
            figures, details = [*figures, *found], [*details, shown]
    return Measurement(figures, details)


# -- a large experiment and registry


def sqlite_sides(directory: Path, runs: int) -> tuple[str, str]:
    """The URLs of equal databases: MLflow's alone, and ours with its indices."""
    from resources.tracking.migration import migrate

    stock, ours = directory / "stock.db", directory / "ours.db"
    _filled(f"sqlite:///{stock}", runs)
    shutil.copy(stock, ours)
    migrate(f"sqlite:///{ours}")
    return f"sqlite:///{stock}", f"sqlite:///{ours}"


def postgres_sides(server: str, runs: int) -> tuple[str, str]:
    from sqlalchemy import create_engine

    from resources.tracking.migration import migrate

    stock = new_database(server, "stock")
    _filled(stock, runs)
    sides = stock, new_database(server, "ours", template="stock")
    migrate(sides[1])
    for url in sides:
        settled(create_engine(url))
    return sides


def _filled(url: str, runs: int) -> None:
    fill(url, runs, runs)
    for versions in _sizes(runs)[:-1]:
        add_versions(url, _model(versions), versions)


def _sizes(runs: int) -> tuple[int, ...]:
    return (runs // 100, runs // 10, runs)


def _model(versions: int, largest: int = 0) -> str:
    return MODEL if versions == largest else f"{MODEL}_{versions}"


def scale_figures(kind: str, stock_url: str, ours_url: str, runs: int) -> tuple[list[Figure], Table]:
    """A figure a question, p50 to p50, and a table with p99 too."""
    client, ours = stock_client(stock_url), MlflowResource(tracking_uri=ours_url)
    indexed = stock_client(ours_url)
    shown = Table(
        *("question", "stock p50", "stock p99", "stock, our indices p50", "ours p50", "ours p99", "times as fast"),
        title=f"{kind}: {runs:,} runs in an experiment, ms",
        title_justify="left",
    )
    figures, flat = [], {}
    for question in questions(client, ours, runs):
        theirs, mine = timed_stock(question), timed(question.ours, OURS_TIMES)
        helped = timed_stock(_with(question, indexed, ours, runs)).told(0.5) if question.searches else ""
        name = f"tracking.{kind}.{question.name}"
        peer = "MLflow's own, stopped at the bound" if theirs.bounded else "MLflow's own"
        figures.append(Figure(name, mine.at(0.5), theirs.at(0.5), peer, target=question.target))
        ratio = f"{'> ' if theirs.bounded else ''}{theirs.at(0.5) / mine.at(0.5):,.0f}"
        shown.add_row(
            question.name, theirs.told(0.5), theirs.told(0.99), helped, mine.told(0.5), mine.told(0.99), ratio
        )
        if question.name.startswith("set_alias"):
            flat[question.name] = mine.at(0.5)
    smallest, *_, largest = flat.values()
    figures.append(
        Figure(
            f"tracking.{kind}.alias_flat", largest, smallest, "ours, a hundredth of the versions", target=FLAT_TARGET
        )
    )
    return figures, shown


def questions(client: MlflowClient, ours: MlflowResource, runs: int) -> Iterator[Question]:
    """The same in both languages; answers are compared before anything is timed, where MLflow's come in time."""
    from resources.tracking.runs import found

    experiment = [str(EXPERIMENT_ID)]

    def above(number: int) -> str:
        return f"metrics.{METRIC} > {random.Random(number).uniform(0.6, 0.97):.4f}"  # noqa: S311

    yield Question(
        "filter_by_metric",
        lambda number: [run.run_id for run in found(ours, [EXPERIMENT], above(number), limit=PAGE)],
        lambda number: [run.info.run_id for run in client.search_runs(experiment, above(number), max_results=PAGE)],
        FILTER_TARGET,
        searches=True,
    )
    yield Question(
        "order_by_metric",
        lambda _: [run.run_id for run in found(ours, [EXPERIMENT], "", [f"metrics.{METRIC} DESC"], PAGE)],
        lambda _: [
            run.info.run_id
            for run in client.search_runs(experiment, "", max_results=PAGE, order_by=[f"metrics.{METRIC} DESC"])
        ],
        ORDER_TARGET,
        searches=True,
    )
    yield Question("latest_champion", lambda _: latest(ours), lambda _: latest_by_stock(client))
    for versions in _sizes(runs):
        name = _model(versions, runs)

        def stock_alias(number: int, name: str = name) -> str:
            client.set_registered_model_alias(name, "champion", str(number + 1))
            return str(client.get_model_version_by_alias(name, "champion").version)

        def our_alias(number: int, name: str = name) -> str | None:
            ours.set_alias(name, "champion", str(number + 1))
            return ours.alias(name, "champion")

        yield Question(f"set_alias_of_{versions}", our_alias, stock_alias)
    yield Question(
        "metric_history",
        lambda number: ours.history(HISTORY, [run_id(number % 50)])["value"].to_list(),
        lambda number: [point.value for point in client.get_metric_history(run_id(number % 50), HISTORY)],
    )


def _with(question: Question, client: MlflowClient, ours: MlflowResource, runs: int) -> Question:
    """The same question, stock's side asked of another database."""
    return next(one for one in questions(client, ours, runs) if one.name == question.name)


def latest(ours: MlflowResource) -> str:
    return next(ours.newest_first(MODEL, {"gate": "passed"}, {"rolled_back": "true"})).version


def latest_by_stock(client: MlflowClient) -> str:
    """MLflow cannot ask for what a version is not tagged with: the newest are read until one fits."""
    found = client.search_model_versions(
        f"name = '{MODEL}' and tags.gate = 'passed'", max_results=PAGE, order_by=["version_number DESC"]
    )
    return next(str(one.version) for one in found if one.tags.get("rolled_back") != "true")


def timed(ask: Ask, times: int) -> Times:
    ask(0)
    return Times([_seconds(ask, number) for number in range(times)])


def timed_stock(question: Question) -> Times:
    """Stock's times, after its answer was shown to be ours; where it reaches the bound, once and by that."""
    from mlflow.exceptions import MlflowException

    began = time.perf_counter()
    try:
        require_equal(question.name, question.ours(1), question.stock(1))
    except MlflowException:
        if (taken := time.perf_counter() - began) < BOUND_SECONDS:
            raise
        return Times([taken], bounded=True)
    times = 2 if time.perf_counter() - began > BOUND_SECONDS / 10 else STOCK_TIMES
    return Times([_seconds(question.stock, number) for number in range(times)])


def _seconds(ask: Ask, number: int) -> float:
    began = time.perf_counter()
    ask(number)
    return time.perf_counter() - began


def stock_client(url: str) -> MlflowClient:
    """MLflow's own client, each of whose statements ends at the bound."""
    from mlflow import MlflowClient
    from sqlalchemy import event

    if url.startswith("postgresql"):
        url = f"{url}?options=-c%20statement_timeout%3D{BOUND_SECONDS * 1000}"
    client = MlflowClient(url, url)
    client.search_runs([str(EXPERIMENT_ID)], max_results=1)
    if url.startswith("sqlite"):
        engine = client._tracking_client.store.engine  # noqa: SLF001  MLflow has no bound of its own

        @event.listens_for(engine, "before_cursor_execute")
        def bound(connection: Any, *_: Any) -> None:
            ends = time.monotonic() + BOUND_SECONDS
            raw = connection.connection.driver_connection
            raw.set_progress_handler(lambda: int(time.monotonic() > ends), 100_000)

    return client


# -- a training loop


@dataclass(frozen=True)
class Trained:
    """One training: its wall time and what of it went into logging; the same of CPU time, which others do not touch."""

    seconds: float
    logging: float
    cpu: float
    cpu_logging: float

    @property
    def step(self) -> float:
        return (self.seconds - self.logging) / ROUNDS

    @property
    def cpu_share(self) -> float:
        return self.cpu_logging / (self.cpu - self.cpu_logging)

    def and_then(self, wall: float, cpu: float) -> Trained:
        """With what logging took beside the loop and after it."""
        return Trained(self.seconds + wall, self.logging + wall, self.cpu + cpu, self.cpu_logging + cpu)


def loop_figures() -> tuple[list[Figure], list[Table | str]]:
    """Loops in turn, every side once a turn; the medians are compared."""
    sides: dict[str, Callable[[MlflowResource], Trained]] = {
        "no logging": lambda _: train(lambda _step, _loss: None),
        "ours": ours_loop,
        "MLflow, synchronous": lambda mlflow: stock_loop(mlflow, synchronous=True),
        "MLflow, asynchronous": lambda mlflow: stock_loop(mlflow, synchronous=False),
    }
    with fresh_home():
        mlflow = MlflowResource()
        mlflow.client().search_experiments()
        taken: dict[str, list[Trained]] = {name: [] for name in sides}
        *in_turn, last = sides
        # MLflow's asynchronous threads go on once they were started, and would be charged to the others
        for names in (in_turn, [last]):
            for turn in range(TRAININGS + 1):
                for name in names:
                    trained = sides[name](mlflow)
                    if turn:  # the first warms up
                        taken[name].append(trained)
    ours, none = taken["ours"], taken["no logging"]
    step = median(one.step for one in none)
    figures = [
        Figure(
            "tracking.loop.cpu",
            1 + median(one.cpu_share for one in ours),
            1,
            "the loop less what logging took, CPU time",
            "",
            LOOP_TARGET,
        ),
        Figure(
            "tracking.loop.wall",
            min(one.seconds for one in ours),
            min(one.seconds for one in none),
            "the same loop without logging, the best of each",
            target=LOOP_TARGET,
        ),
        *(
            Figure(
                f"tracking.loop.against_{name.rpartition(' ')[2]}",
                median(one.logging for one in ours) / ROUNDS * 1e6,
                median(one.logging for one in taken[name]) / ROUNDS * 1e6,
                f"{name}, a step",
                "us",
            )
            for name in ("MLflow, synchronous", "MLflow, asynchronous")
        ),
    ]
    shown = Table(
        *("loop", "whole, s", "logging, ms", "a step, us", "share of the loop", "of CPU time"),
        title=f"{ROUNDS} rounds of XGBoost on one thread, {step * 1000:.1f} ms a round, one call of two values a round",
        title_justify="left",
    )
    for name, results in taken.items():
        logging = median(one.logging for one in results)
        shown.add_row(
            name,
            f"{median(one.seconds for one in results):.2f}",
            f"{logging * 1000:.1f}",
            f"{logging / ROUNDS * 1e6:.1f}",
            f"{logging / median(one.seconds - one.logging for one in results):.2%}",
            f"{median(one.cpu_share for one in results):.2%}",
        )
    return figures, [shown]


def train(tell: Callable[[int, float], object]) -> Trained:
    """A training with a call after each round, and the time that the calls took."""
    import xgboost as xgb

    taken = cpu_taken = 0.0

    class Rounds(xgb.callback.TrainingCallback):
        def after_iteration(self, _model: Any, epoch: int, evals_log: Any) -> bool:
            nonlocal taken, cpu_taken
            began, cpu_began = time.perf_counter(), time.thread_time()
            tell(epoch, evals_log["train"]["logloss"][-1])
            taken, cpu_taken = taken + time.perf_counter() - began, cpu_taken + time.thread_time() - cpu_began
            return False

    data = _data()
    began, cpu_began = time.perf_counter(), time.thread_time()
    xgb.train(
        {"objective": "binary:logistic", "nthread": 1, "max_depth": 6},
        data,
        ROUNDS,
        evals=[(data, "train")],
        verbose_eval=False,
        callbacks=[Rounds()],
    )
    return Trained(time.perf_counter() - began, taken, time.thread_time() - cpu_began, cpu_taken)


def ours_loop(mlflow: MlflowResource) -> Trained:
    """What counts as logging: the calls, what the delivering thread computes meanwhile, and the wait at the end."""
    with mlflow.run("benchmark", "ours") as run, _accounted() as account, mlflow.loop(run) as log:
        trained = train(lambda step, loss: log(step, loss=loss, twice=2 * loss))
        account.loop_ended()
    require_equal("the last value", mlflow.client().get_run(run).data.metrics.keys(), {"loss", "twice"})
    require_equal("the values", len(mlflow.metric_history(run, "loss")), ROUNDS)
    return trained.and_then(account.wall, account.cpu)


@dataclass
class _Account:
    """The time after a loop, and the CPU time of other threads during it and of all after it."""

    began: float
    ended: float = 0.0
    cpu_ended: float = 0.0
    wall: float = 0.0
    cpu: float = 0.0

    def loop_ended(self) -> None:
        self.ended, self.cpu = time.perf_counter(), time.process_time() - time.thread_time() - self.began
        self.cpu_ended = time.process_time()


@contextmanager
def _accounted() -> Iterator[_Account]:
    account = _Account(time.process_time() - time.thread_time())
    yield account
    account.wall = time.perf_counter() - account.ended
    account.cpu += time.process_time() - account.cpu_ended


def stock_loop(mlflow: MlflowResource, *, synchronous: bool) -> Trained:
    """Its asynchronous calls are paid by threads of its own, whose time counts as that of ours does."""
    client = mlflow.client()

    def tell(step: int, loss: float) -> None:
        for name, value in (("loss", loss), ("twice", 2 * loss)):
            client.log_metric(run, name, value, step=step, synchronous=synchronous)

    with mlflow.run("benchmark", "stock") as run, _accounted() as account:
        trained = train(tell)
        account.loop_ended()
        while not synchronous and len(mlflow.metric_history(run, "twice")) < ROUNDS:
            time.sleep(0.2)
    return trained.and_then(account.wall, account.cpu)


_KEPT: list[Any] = []


def _data() -> Any:
    import numpy as np
    import xgboost as xgb

    if not _KEPT:
        chance = np.random.default_rng(1)
        rows = chance.normal(size=(ROWS, COLUMNS))
        truth = rows[:, 0] + rows[:, 1] * rows[:, 2] + chance.normal(size=ROWS) > 0
        _KEPT.append(xgb.QuantileDMatrix(rows, label=truth, nthread=1))
    return _KEPT[0]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000, help="runs, and versions of the largest model")
    measurement = measure(max(1_000, parser.parse_args().runs))
    Console(width=160).print(table("tracking", measurement.figures), *measurement.details, sep="\n")


if __name__ == "__main__":
    main()
