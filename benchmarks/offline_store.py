"""Historical features through Feast's interface: our offline store against Feast's own, DuckDB's ASOF JOIN, and Polars.

A contender is a process of its own that starts from the same pandas labels and the same Parquet files and ends with
an Arrow table. Each first gives its table, which must be the same as everybody's; only then are they timed, in turn.
One that takes too long or too much memory is stopped, and that is said. Used at run time only: Polars is imported
at once; Feast and DuckDB in the processes that contend.

    python -m benchmarks offline_store           the flights join with all; the grid's corners, ours and Polars
    python -m benchmarks.offline_store --full    10,000, 327,346 and 5,000,000 labels with 1, 5 and 20 views, with all
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
from polars.testing import assert_frame_equal
from rich.table import Table

from benchmarks.harness import Figure, Measurement
from resources.environment import PROJECT
from resources.point_in_time import ViewFrame, naive_join

GIBIBYTE = 2**30
YEAR = (date(2013, 1, 1), date(2014, 1, 2))
LIMITS = {"seconds": 60.0, "memory": 8.0 * GIBIBYTE}
OURS, DUCKDB_STORE, DASK_STORE, ASOF, BARE = "ours", "Feast's DuckDB", "Feast's dask", "DuckDB ASOF", "bare Polars"
OURS_POLARS, BARE_POLARS = "ours, Polars labels", "bare Polars, Polars labels"
EVERYONE = (OURS, DUCKDB_STORE, DASK_STORE, ASOF, BARE)
PEERS = (OURS, DUCKDB_STORE, ASOF, BARE)
TIME = "event_timestamp"


@dataclass(frozen=True)
class View:
    """A Parquet file of features, its keys, and for how many hours a row is valid (0: for ever)."""

    name: str
    path: str
    keys: tuple[str, ...]
    hours: float
    features: tuple[str, ...]

    @property
    def ttl(self) -> timedelta:
        return timedelta(hours=self.hours)


@dataclass(frozen=True)
class Case:
    """Labels and views in files below a directory, and who contends."""

    name: str
    directory: Path
    labels: int
    views: tuple[View, ...]
    contenders: tuple[str, ...]
    rounds: int = 3


@dataclass(frozen=True)
class Result:
    """What a contender needed: seconds of each round and the peak of its memory, or why it was stopped."""

    seconds: tuple[float, ...] = ()
    planned: tuple[float, ...] = ()
    peak: float = 0
    stopped: str = ""


def measure(full: bool = False) -> Measurement:
    """The flights join with everybody, the grid of labels and views, and how ours grows."""
    with TemporaryDirectory(prefix="mlops-benchmark-") as name:
        directory = Path(name)
        flights = flights_cases(directory)
        grid = grid_cases(directory, full)
        histories = history_cases(directory)
        cases = [*flights, *grid, *histories]
        results = {case.name: contend(case) for case in cases}
    figures = [figure for case in flights for figure in _flights_figures(case, results[case.name])]
    figures += [
        *_grid_figures(grid, results),
        _growth_in_labels(grid, results),
        *_growth_in_history(histories, results),
    ]
    return Measurement(figures, [_table(cases, results)])


# -- what is joined


def flights_cases(directory: Path, days: tuple[date, date] = YEAR, rounds: int = 5) -> list[Case]:
    """Every labelled flight with the weather of its airport and the days of its carrier.

    As the views are declared, where weather is seen for three hours; and with no ttl, as in Feast's default.
    """
    views = [view for view in written(directory, days) if view.name in ("weather_hourly", "carrier_punctuality")]
    labels = year_of_labels(days)
    everybody = (*EVERYONE, OURS_POLARS, BARE_POLARS)
    for_ever = tuple(replace(view, hours=0) for view in views)
    return [
        Case("flights", _with_labels(directory / "flights", labels), labels.height, tuple(views), everybody, rounds),
        Case("flights, no ttl", _with_labels(directory / "no-ttl", labels), labels.height, for_ever, PEERS, 3),
    ]


def grid_cases(directory: Path, full: bool, sizes: Sequence[int] = (10_000, 327_346, 5_000_000)) -> list[Case]:
    """Labels times views: in full with everybody, who have a minute each; else the corners, with ours and Polars."""
    corners = {(sizes[0], 1), (sizes[0], 20), (sizes[1], 1), (sizes[1], 20), (sizes[2], 1), (sizes[2], 5)}
    views, held = written(directory, YEAR), year_of_labels(YEAR)
    cases = []
    for size in sizes:
        below = _with_labels(directory / f"{size}-labels", tiled(held, size))
        for count in (1, 5, 20):
            if full or (size, count) in corners:
                who = EVERYONE if full else (OURS, BARE)
                rounds = 3 if size > sizes[1] else 7
                cases.append(Case(f"{size:,} labels, {count} views", below, size, views[:count], who, rounds))
    return cases


def history_cases(directory: Path, rows: int = 1_000_000, labels: int = 100_000) -> list[Case]:
    """A million rows of ten thousand entities, and as many rows of a thousand: ten times the history each."""
    made = []
    for entities in (10_000, 1000):
        below = directory / f"{entities}-entities"
        below.mkdir(parents=True)
        number = pl.int_range(rows, eager=True).alias("number")
        start = pl.lit(datetime(2013, 1, 1, tzinfo=UTC)).cast(pl.Datetime("us", "UTC"))
        table = number.to_frame().select(
            (pl.col("number") * 7919 % entities).alias("key"),
            (start + pl.duration(seconds=pl.col("number") * 30)).alias(TIME),
            pl.col("number").cast(pl.Float64).alias("x"),
        )
        table.write_parquet(below / "history.parquet")
        _with_labels(below, _numbered(table.drop("x").gather_every(rows // labels)))
        view = View("history", str(below / "history.parquet"), ("key",), 0, ("x",))
        made.append(Case(f"{rows // entities:,} rows an entity", below, labels, (view,), PEERS, 5))
    return made


def written(directory: Path, days: tuple[date, date]) -> tuple[View, ...]:
    """Twenty views as Parquet files: the five of the model, weather first, four times over."""
    model, held = _flights(days)
    below = directory / "views"
    below.mkdir(parents=True, exist_ok=True)
    chosen = sorted((item.view for item in model.selections), key=lambda view: view.name != "weather_hourly")
    views = []
    for copy in range(4):
        for view in chosen:
            table, keys = held[f"view_{view.name}"].collect(), tuple(view.join_keys)
            renamed = {name: f"{name}_{copy}" for name in table.columns if copy and name not in (*keys, TIME)}
            name = f"{view.name}_{copy}" if copy else view.name
            table.rename(renamed).write_parquet(below / f"{name}.parquet")
            features = tuple(renamed.get(column, column) for column in table.columns if column not in (*keys, TIME))
            hours = (view.ttl or timedelta(0)) / timedelta(hours=1)
            views.append(View(name, str(below / f"{name}.parquet"), keys, hours, features))
    return tuple(views)


@cache
def _flights(days: tuple[date, date]) -> tuple[Any, Mapping[str, pl.LazyFrame]]:
    from benchmarks.training_set import MODEL, frames
    from mlops_assets.catalog import gather

    model = gather().model(MODEL)
    return model, frames(model, days)


def year_of_labels(days: tuple[date, date]) -> pl.DataFrame:
    """The labelled flights in order of time."""
    spine = _flights(days)[1]["spine"].select("origin", "dest", "carrier", "tailnum", TIME)
    return _numbered(spine.collect().sort(TIME, maintain_order=True))


def _with_labels(directory: Path, labels: pl.DataFrame) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    labels.write_parquet(directory / "labels.parquet")
    return directory


def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_row_index("label").with_columns(pl.col("label").cast(pl.Int64))


def tiled(rows: pl.DataFrame, labels: int) -> pl.DataFrame:
    """So many labels: every n-th row, or the rows again and again, a second later each time."""
    rows = rows.drop("label")
    if labels <= rows.height:
        return _numbered(rows.gather_every(rows.height // labels).head(labels))
    times = range(-(-labels // rows.height))
    copies = [rows.with_columns(pl.col(TIME) + pl.duration(seconds=copy)) for copy in times]
    return _numbered(pl.concat(copies).head(labels).sort(TIME, maintain_order=True))


# -- who contends: each a process that gives its table, then runs once a line


class Contender:
    """A process that does the join when told; whatever it does not answer in time is its end."""

    def __init__(self, who: str, case: Case, limits: Mapping[str, float]) -> None:
        said = {"who": who, "directory": str(case.directory), "views": [vars(view) for view in case.views]}
        memory = limits["memory"] if who == DASK_STORE else 0  # the one that takes all there is
        command = [
            sys.executable,
            "-m",
            "benchmarks.offline_store",
            "--contend",
            json.dumps({**said, "memory": memory}),
        ]
        self._limit = limits["seconds"]
        self._said = case.directory / f"{_slug(who)}.err"
        with self._said.open("wb") as trouble:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=trouble,
                bufsize=0,
                cwd=case.directory,  # where DuckDB leaves gigabytes when it is stopped
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
            )
        self.result = Result()
        self._answer(self._limit + 60)  # to be imported takes Feast ten seconds, more on a busy machine

    def go(self) -> None:
        """One round; its first gives the table, and is not timed."""
        if self.result.stopped or not self._process.stdin:
            return
        self._process.stdin.write(b"go\n")
        if answer := self._answer(self._limit):
            held = self.result
            self.result = replace(
                held,
                seconds=(*held.seconds, answer["seconds"]),
                planned=(*held.planned, answer["planned"]),
                peak=answer["peak"],
            )

    def forget(self) -> None:
        """The rounds so far were to get warm."""
        self.result = replace(self.result, seconds=(), planned=())

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, limit: float) -> dict[str, Any]:
        answers = self._process.stdout
        ready = answers and select.select([answers.fileno()], [], [], limit)[0]
        if answers and ready and (line := answers.readline()):
            return dict(json.loads(line))
        lines = self._said.read_text().strip().splitlines()
        last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "nothing said")
        self.result = replace(self.result, stopped=f"ended: {last[:70]}" if ready else f"stopped after {limit:.0f} s")
        self.end()
        return {}


def contend(case: Case, limits: Mapping[str, float] = LIMITS) -> dict[str, Result]:
    """Raises AssertionError where two contenders give different tables; what they need otherwise."""
    with ExitStack() as stack:
        running = {who: stack.enter_context(_running(who, case, limits)) for who in case.contenders}
        for contender in running.values():
            contender.go()
        _same(case, [who for who, contender in running.items() if not contender.result.stopped])
        for contender in running.values():
            contender.forget()
        for number in range(case.rounds):
            for contender in list(running.values())[:: 1 if number % 2 == 0 else -1]:
                contender.go()
        return {who: contender.result for who, contender in running.items()}


@contextmanager
def _running(who: str, case: Case, limits: Mapping[str, float]) -> Iterator[Contender]:
    contender = Contender(who, case, limits)
    try:
        yield contender
    finally:
        contender.end()


def _same(case: Case, finished: Sequence[str]) -> None:
    """Rows, order and values: ours as bare Polars has them, a sample as brute force has it, the others' by label."""
    ours = _given(case, OURS)
    assert_frame_equal(ours, _given(case, BARE).select(ours.columns), check_exact=True)
    columns = list(pl.read_parquet_schema(case.directory / "labels.parquet"))
    sample = ours.gather_every(max(1, ours.height // 50)).select(columns)
    proof = naive_join(sample, [_frame(view) for view in case.views])
    assert_frame_equal(ours.filter(pl.col("label").is_in(sample["label"].implode())), proof, check_exact=True)
    for who in finished:
        theirs = _given(case, who).select(ours.columns).cast(ours.schema)
        assert_frame_equal(theirs.sort("label"), ours.sort("label"), check_exact=True)


def _given(case: Case, who: str) -> pl.DataFrame:
    return pl.read_parquet(case.directory / f"{_slug(who)}.out")


def _frame(view: View) -> ViewFrame:
    features, keys = {name: name for name in view.features}, {key: key for key in view.keys}
    return ViewFrame(pl.scan_parquet(view.path), keys, features, ttl=view.ttl or None)


def _slug(who: str) -> str:
    return re.sub(r"\W+", "-", who)


def contend_here(said: Mapping[str, Any]) -> None:
    """A contender's process: a line to say that it is ready, then a round for each line it is sent."""
    if said["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (int(said["memory"]),) * 2)
    directory, who = Path(said["directory"]), str(said["who"])
    views = [View(**{**view, "keys": tuple(view["keys"])}) for view in said["views"]]
    join, out = JOINS[who](directory, views), directory / f"{_slug(who)}.out"
    out.unlink(missing_ok=True)
    print(json.dumps({"ready": who}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        table, planned = join()
        taken = time.perf_counter() - started
        if not out.exists():
            pl.DataFrame(table).write_parquet(out)
        del table
        print(json.dumps({"seconds": taken, "planned": planned - started, "peak": _peak()}), flush=True)


def _peak() -> int:
    """Bytes; Linux counts what a parent held into its child's ru_maxrss."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


Join = Callable[[], tuple[Any, float]]


def _feast(kind: str, polars_labels: bool = False) -> Callable[[Path, Sequence[View]], Join]:
    """`get_historical_features(...).to_arrow()` of a store, as its users call it."""

    def prepare(directory: Path, views: Sequence[View]) -> Join:
        store = feature_store(kind, directory, views)
        labels = pl.read_parquet(directory / "labels.parquet")
        rows: Any = labels if polars_labels else labels.to_pandas()
        features = [f"{view.name}:{feature}" for view in views for feature in view.features]

        def join() -> tuple[Any, float]:
            job = store.get_historical_features(entity_df=rows, features=features)
            return job.to_arrow() if (planned := time.perf_counter()) else None, planned

        return join

    return prepare


def feature_store(kind: str, directory: Path, views: Sequence[View]) -> Any:
    """A Feast repository with these views on an offline store of this kind."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
    from feast.types import from_value_type
    from feast.value_type import ValueType

    kinds = {pl.Float64(): ValueType.DOUBLE, pl.String(): ValueType.STRING}
    store = FeatureStore(
        config=RepoConfig(
            project="benchmark",
            provider="local",
            registry=str(directory / f"registry-{_slug(kind)}-{os.getpid()}.db"),
            online_store=None,
            offline_store={"type": kind},
            entity_key_serialization_version=3,
            repo_path=directory,
        )
    )
    objects: list[Any] = []
    for view in views:
        schema = pl.read_parquet_schema(view.path)
        of = {name: kinds.get(schema[name], ValueType.INT64) for name in (*view.keys, *view.features)}
        entities = [Entity(name=key, join_keys=[key], value_type=of[key]) for key in view.keys]
        objects += entities
        objects.append(
            FeatureView(
                name=view.name,
                entities=entities,
                ttl=view.ttl,
                schema=[Field(name=name, dtype=from_value_type(value)) for name, value in of.items()],
                source=FileSource(name=f"{view.name}_file", path=view.path, timestamp_field=TIME),
            )
        )
    store.apply(objects)
    return store


def _asof(directory: Path, views: Sequence[View]) -> Join:
    import duckdb

    labels = pl.read_parquet(directory / "labels.parquet").to_pandas()
    connection = duckdb.connect()
    connection.execute("SET TimeZone='UTC'")
    selected, joined = ["labels.*"], ["FROM labels"]
    for view in views:
        keys = " AND ".join(f"labels.{key} = {view.name}.{key}" for key in view.keys)
        joined.append(f"ASOF LEFT JOIN '{view.path}' {view.name} ON {keys} AND labels.{TIME} >= {view.name}.{TIME}")
        age, ttl = f"labels.{TIME} - {view.name}.{TIME}", f"INTERVAL {round(view.hours * 3600)} SECOND"
        valid = f"{age} <= {ttl}" if view.hours else "TRUE"
        selected += [f"CASE WHEN {valid} THEN {view.name}.{name} END AS {name}" for name in view.features]
    query = f"SELECT {', '.join(selected)} {' '.join(joined)}"

    def join() -> tuple[Any, float]:
        connection.register("labels", labels)
        planned = time.perf_counter()
        return connection.execute(query).to_arrow_table(), planned

    return join


def _bare(polars_labels: bool = False) -> Callable[[Path, Sequence[View]], Join]:
    """What somebody would write by hand: `join_asof` after `join_asof`, and no guard at all."""

    def prepare(directory: Path, views: Sequence[View]) -> Join:
        held = pl.read_parquet(directory / "labels.parquet")
        labels = held.to_pandas()

        def join() -> tuple[Any, float]:
            rows = held if polars_labels else pl.from_pandas(labels)
            joined = rows.lazy().sort(TIME, maintain_order=True)  # for equal tables: labels of one moment are many
            planned = time.perf_counter()
            for view in views:
                history, ttl = pl.scan_parquet(view.path).sort(TIME), view.ttl or None
                joined = joined.join_asof(history, on=TIME, by=list(view.keys), tolerance=ttl, check_sortedness=False)
            return joined.collect().to_arrow(), planned

        return join

    return prepare


OUR_STORE = "resources.polars_offline_store.PolarsOfflineStore"
JOINS: dict[str, Callable[[Path, Sequence[View]], Join]] = {
    OURS: _feast(OUR_STORE),
    OURS_POLARS: _feast(OUR_STORE, polars_labels=True),
    DUCKDB_STORE: _feast("duckdb"),
    DASK_STORE: _feast("dask"),
    ASOF: _asof,
    BARE: _bare(),
    BARE_POLARS: _bare(polars_labels=True),
}


# -- what is said of it


def _flights_figures(case: Case, results: Mapping[str, Result]) -> list[Figure]:
    targets = [(OURS, DUCKDB_STORE, 1 / 40), (OURS, BARE, 1.5), (OURS_POLARS, DUCKDB_STORE, 1 / 40)]
    targets.append((OURS_POLARS, BARE_POLARS, 1.5))
    return [
        _figure(f"{case.name}: {one}", results[one], results[peer], peer, at_most)
        for one, peer, at_most in targets
        if one in results and peer in results and results[peer].seconds
    ]


def _grid_figures(grid: Sequence[Case], results: Mapping[str, Mapping[str, Result]]) -> list[Figure]:
    held = [(case.name, results[case.name]) for case in grid]
    return [_figure(name, result[OURS], result[BARE], BARE, 1.5) for name, result in held]


def _figure(name: str, ours: Result, peer: Result, peer_name: str, at_most: float | None) -> Figure:
    return Figure(f"offline_store.{name}", median(ours.seconds), median(peer.seconds), peer_name, "s", at_most)


def _growth_in_labels(grid: Sequence[Case], results: Mapping[str, Mapping[str, Result]]) -> Figure:
    """A label's time among the most labels, against one's among the labelled flights."""
    few, many = [case for case in grid if len(case.views) == 1][-2:]
    most, least = (1e6 * median(results[case.name][OURS].seconds) / case.labels for case in (many, few))
    return Figure("offline_store.growth_in_labels", most, least, f"ours with {few.labels:,}", "us a label", 1.0)


def _growth_in_history(cases: Sequence[Case], results: Mapping[str, Mapping[str, Result]]) -> list[Figure]:
    """Ten times the history an entity, at as many rows, against a tenth of it."""
    short, long = (results[case.name] for case in cases)
    return [
        _figure(f"history_tenfold: {who}", long[who], short[who], "itself", 1.5 if who == OURS else None)
        for who in (OURS, DUCKDB_STORE)
        if long[who].seconds and short[who].seconds
    ]


def _table(cases: Sequence[Case], results: Mapping[str, Mapping[str, Result]]) -> Table:
    shown = Table("case", "contender", "median s", "of it planning", "times ours", "peak MB", "", title="contenders")
    for case in cases:
        ours = median(results[case.name][OURS].seconds)
        for who, result in results[case.name].items():
            if not result.seconds:
                shown.add_row(case.name, who, "", "", "", "", result.stopped)
                continue
            taken, planned = median(result.seconds), median(result.planned)
            numbers = (f"{taken:.3f}", f"{planned:.3f}", f"{taken / ours:.2f}", f"{result.peak / 1e6:,.0f}")
            shown.add_row(case.name, who, *numbers, result.stopped)
    return shown


def main() -> None:
    from rich.console import Console

    from benchmarks.harness import table

    if sys.argv[1:2] == ["--contend"]:
        contend_here(json.loads(sys.argv[2]))
        return
    measured = measure(full="--full" in sys.argv[1:])
    Console(width=None if sys.stdout.isatty() else 160).print(
        table("offline_store", measured.figures), *measured.details
    )


if __name__ == "__main__":
    main()
