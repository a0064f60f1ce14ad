"""The main job as a story: a model from raw data to a served, monitored, retrained and rolled-back endpoint.

Everything in it is done by the assets, the sensors and the commands that a user has: jobs fill the
tables and train, a real endpoint process answers over HTTP, the sensors' own ticks ask for the retraining
and move the canary, and `mlops rollback` and `mlops promote` are run as commands. Only the clock is not
real: the days of 2013 pass as fast as they are replayed. A step that does not happen ends the demo
with an error and a non-zero exit status.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field, fields
from datetime import UTC, date, datetime, timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Self

from mlops_assets.declarations import EVENT_TIMESTAMP, FeatureView, ModelPipeline
from resources.environment import PROJECT, home, prepare_home

if TYPE_CHECKING:
    import dagster as dg
    import httpx
    from rich.console import Console
    from rich.status import Status

MODEL = "flights/late_arrival"
OTHER_MODELS = ("flights/arrival_delay", "flights/departure_delay")
STORY = "demo.json"
TABLES_JOB = "flights__tables"
FIRST_DAY, FIRST_CUTOFF = date(2013, 1, 1), date(2013, 4, 1)
REPLAY_FROM = date(2013, 7, 15)
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
HOUR = timedelta(hours=1)


class StoryError(RuntimeError):
    """A step of the story did not happen."""

    @classmethod
    def of(cls, step: str, expected: str, found: object) -> Self:
        return cls(f"{step}: expected {expected}, found {found}. The logs are in {home() / 'logs'}.")


@dataclass(frozen=True)
class Chapter:
    """One line of the closing table."""

    what: str
    model: str = ""
    cutoff: str = ""
    version: str = ""
    metric: str = ""
    gate: str = ""
    traffic: str = ""


@dataclass
class Story:
    """The running demo: its instance, its endpoint, and what has happened so far."""

    console: Console
    model: ModelPipeline
    instance: dg.DagsterInstance
    endpoint: httpx.Client
    chapters: list[Chapter] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    cursors: dict[str, str | None] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        with self.console.status(f"[bold]{name}[/] ...") as status, _progress(status, name):
            yield
        self.seconds[name] = time.monotonic() - started
        self.console.print(f"[green]done[/] {name} [dim]{self.seconds[name]:.1f} s[/]")

    def say(self, text: str) -> None:
        self.console.print(f"     {text}")

    # -- the tables -----------------------------------------------------------------------------

    def fill(self, first: date, last: date) -> None:
        """Backfill sources, feature views and labels for a range of days in a single run."""
        tags = {"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)}
        self.run_job(TABLES_JOB, tags=tags)

    def publish_online(self, at: datetime) -> None:
        """Materialize the online asset of every view as of a moment."""
        from mlops_assets.links.online import online_key

        views = [view for view in self.catalog_views if view.online]
        ops = {"__".join(online_key(view).path): {"config": {"as_of": at.isoformat()}} for view in views}
        self.materialize([online_key(view) for view in views], config={"ops": ops})

    @property
    def catalog_views(self) -> list[FeatureView]:
        from mlops_assets.catalog import gather

        return gather().views

    # -- runs -----------------------------------------------------------------------------------

    def run_job(self, name: str, *, partition: str | None = None, tags: dict[str, str] | None = None) -> Any:
        from mlops_assets.definitions import defs

        job = defs.resolve_job_def(name)
        return self._succeed(
            name, job.execute_in_process(QUIET, self.instance, partition_key=partition, tags=tags, raise_on_error=False)
        )

    def materialize(
        self, keys: Sequence[dg.AssetKey], *, partition: str | None = None, config: dict[str, Any] | None = None
    ) -> Any:
        from mlops_assets.definitions import defs

        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            {**QUIET, **(config or {})},
            self.instance,
            partition_key=partition,
            asset_selection=list(keys),
            raise_on_error=False,
        )
        return self._succeed(", ".join(key.to_user_string() for key in keys), result)

    def _succeed(self, what: str, result: Any) -> Any:
        if not result.success:
            errors = [event.step_failure_data.error for event in result.get_step_failure_events()]
            why = errors[0].to_string() if errors and errors[0] else "no step failed; the run did"
            raise StoryError.of(what, "a successful run", why)
        return result

    # -- the endpoint ---------------------------------------------------------------------------

    def replay(self, day: date, hours: range = range(24)) -> int:
        """Ask the endpoint about every flight of some hours of a day, each at its scheduled minute.

        Between two batches the hourly views are brought up to each hour as a stream would, by the very
        function that their online assets call.
        """
        from mlops_assets.links.online import publish_online
        from resources.environment import resources_for

        stores = resources_for()
        hourly = [view for view in self.catalog_views if view.ttl is not None and view.ttl < timedelta(days=1)]
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        asked = 0
        for hour in hours:
            now = midnight + HOUR * hour
            for view in hourly:
                publish_online(stores["feast"], stores["lake"], view, now)
            for at, rows in departures(self.model, now, now + HOUR):
                asked += len(self.ask(rows, at))
        return asked

    def ask(self, rows: list[dict[str, Any]], at: datetime) -> list[dict[str, Any]]:
        """Predictions for some events at a moment, over HTTP."""
        answer = self.endpoint.post(f"/{self.model.id}/predict", json={"rows": rows, "at": at.isoformat()})
        if answer.status_code != 200:
            raise StoryError.of("a request", "status 200", f"{answer.status_code}: {answer.text[:500]}")
        return list(answer.json()["predictions"])

    def versions_answering(self) -> set[str]:
        """The versions that the endpoint has loaded and gives traffic to."""
        answer = self.endpoint.get(f"/{self.model.id}/release")
        return {variant["version"] for variant in answer.json()["serving"]}

    def await_versions(self, expected: set[str]) -> None:
        """Wait until exactly these versions answer; the endpoint follows its record within a second."""
        deadline = time.monotonic() + 30
        while (found := self.versions_answering()) != expected:
            if time.monotonic() > deadline:
                raise StoryError.of("the endpoint", f"answers from versions {sorted(expected)}", sorted(found))
            time.sleep(0.1)

    def await_logged(self, day: date, asked: int) -> None:
        """Wait until the log holds every answer of a day; the endpoint writes them down a moment after it gave them."""
        from mlops_assets.serving.prediction_log import PredictionLog

        deadline = time.monotonic() + 30
        while (found := PredictionLog().read(self.model.id, day).height) < asked:
            if time.monotonic() > deadline:
                raise StoryError.of("the prediction log", f"{asked} answers of {day}", found)
            time.sleep(0.1)

    # -- monitoring and decisions ------------------------------------------------------------------

    def report(self, day: date) -> dict[str, Any]:
        """Materialize the day's predictions, scores and reports; returns the reports' numbers."""
        from mlops_assets.links.spec import link_key

        links = ("predictions", "scores", "quality_report", "drift_report", "performance_report")
        result = self.materialize([link_key(self.model, link) for link in links], partition=str(day))
        return {
            event.asset_key.path[-1]: {name: value.value for name, value in event.materialization.metadata.items()}
            for event in result.get_asset_materialization_events()
        }

    def failing_checks(self, day: date) -> list[str]:
        """The monitoring checks that failed on a day."""
        import dagster as dg

        from mlops_assets.links import drift_report, performance_report
        from mlops_assets.links.spec import link_key
        from sensors.retraining import read_signals

        checks = [(drift_report.LINK, drift_report.CHECK), (performance_report.LINK, performance_report.CHECK)]
        signals = [
            signal
            for link, check in checks
            for signal in read_signals(self.instance, dg.AssetCheckKey(link_key(self.model, link), check))
        ]
        return [signal.check for signal in signals if signal.day == day and not signal.passed]

    def tick(self, sensor: str) -> Any:
        """Evaluate one of the model's sensors as the daemon would, keeping its cursor."""
        import dagster as dg

        from mlops_assets.definitions import defs
        from resources.environment import resources_for

        name = f"{self.model.team}__{self.model.name}__{sensor}"
        context = dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursors.get(name),
            definitions=defs,
            resources={"alerts": resources_for()["alerts"]},
        )
        result: Any = defs.resolve_sensor_def(name)(context)
        self.cursors[name] = result.cursor
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return result

    def command(self, *words: str) -> None:
        """Run the `mlops` command as a user would."""
        ran = subprocess.run(
            [sys.executable, "-m", "mlops_assets.cli", *words], capture_output=True, text=True, cwd=PROJECT, check=False
        )
        self.say(f"$ mlops {' '.join(words)}")
        for line in (ran.stdout + ran.stderr).strip().splitlines():
            self.say(f"  {line}")
        if ran.returncode:
            raise StoryError.of(f"mlops {' '.join(words)}", "exit status 0", ran.returncode)

    # -- what happened -------------------------------------------------------------------------------

    @property
    def traffic(self) -> str:
        return traffic_of(self.model)

    @property
    def champion(self) -> str:
        from resources.releases import ReleaseStore

        record = ReleaseStore().read(self.model.id)
        return record.champion.version if record else ""

    def tell(self, what: str, **facts: str) -> None:
        self.chapters.append(Chapter(what, **{"model": self.model.name, "traffic": self.traffic, **facts}))

    def tell_training(self, what: str, model: ModelPipeline, result: Any, cutoff: str) -> str:
        """Note a training run; returns the candidate's version."""
        key = [model.team, model.name, "candidate"]
        metadata = next(
            event.materialization.metadata
            for event in result.get_asset_materialization_events()
            if event.asset_key is not None and list(event.asset_key.path) == key
        )
        checks = [check for check in result.get_asset_check_evaluations() if list(check.asset_key.path) == key]
        version = str(metadata["version"].value)
        self.tell(
            what,
            model=model.name,
            cutoff=cutoff,
            version=version,
            metric=f"{metadata['metric_name'].value} {metadata['metric'].value:.4f}",
            gate="passed" if checks and all(map(_lets_through, checks)) else "refused",
            traffic=traffic_of(model),
        )
        for check in checks:
            self.say(f"[dim]{check.check_name}: {check.description}[/]")
        return version


def _lets_through(check: Any) -> bool:
    """A warning holds nothing back."""
    return check.passed or check.severity.value == "WARN"


def traffic_of(model: ModelPipeline) -> str:
    """Which versions answer now, and how much each."""
    from resources.releases import ReleaseStore

    record = ReleaseStore().read(model.id)
    return ", ".join(f"v{item.version} {item.weight} %" for item in record.variants) if record else "none"


class _Progress(logging.Handler):
    """Shows what a long step logs (a trial of a search, a fit) beside its name."""

    def __init__(self, status: Status, step: str) -> None:
        super().__init__(logging.INFO)
        self._status, self._step = status, step

    def emit(self, record: logging.LogRecord) -> None:
        self._status.update(f"[bold]{self._step}[/] ... [dim]{record.getMessage()}[/]")


@contextmanager
def _progress(status: Status, step: str) -> Iterator[None]:
    logger, handler = logging.getLogger("mlops_assets"), _Progress(status, step)
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def departures(model: ModelPipeline, first: datetime, end: datetime) -> Iterator[tuple[datetime, list[dict[str, Any]]]]:
    """The requests of every scheduled flight in [first, end), by its minute; cancelled flights too: nobody knew.

    Flights without a tail number are left out: there is no aircraft to ask about.
    """
    import polars as pl

    from feature_assets.flights.arrivals import boarding
    from resources.environment import resources_for

    table = resources_for()["lake"].scan(["flights", "raw_flights"], [f"{first:%Y-%m-%d}"])
    columns = list(dict.fromkeys([model.labels.key, *model.labels.join_keys, *model.labels.request]))
    rows = (
        boarding(table)
        .filter(pl.col(EVENT_TIMESTAMP).is_between(first, end, closed="left"), pl.col("tailnum").is_not_null())
        .select(EVENT_TIMESTAMP, *columns)
        .collect()
    )
    for (at,), group in rows.group_by(EVENT_TIMESTAMP, maintain_order=True):
        yield at, group.drop(EVENT_TIMESTAMP).to_dicts()


def live_metrics(model: ModelPipeline, first: date, last: date) -> list[tuple[str, int, float]]:
    """Version, flights and metric of what each version answered from `first` to `last`, by the labels there are."""
    import polars as pl

    from mlops_assets.catalog import asset_key
    from mlops_assets.links.spec import link_key
    from mlops_assets.metrics import METRICS
    from resources.environment import resources_for

    lake = resources_for()["lake"]
    days = [str(first + timedelta(days=i)) for i in range((last - first).days + 1)]
    answers = lake.scan(link_key(model, "predictions"), days).select("request_id", "version", "prediction")
    truth = lake.scan(asset_key(model.labels), days).select(request_id=model.labels.key, truth=pl.col(model.label))
    known = answers.join(truth, on="request_id").with_columns(pl.col("truth").cast(pl.Float64)).collect()
    metric = METRICS[model.gate.metric]
    return [
        (str(version), part.height, metric.compute(part["truth"].to_numpy(), part["prediction"].to_numpy()))
        for (version,), part in known.sort("version").group_by("version", maintain_order=True)
    ]


def run_demo() -> int:
    """Tell the story; 0 when every step of it happened."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140)
    os.environ.setdefault("MLOPS_ENV", "local")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its schema's migrations are not part of the story
    _turn_the_page(console)
    prepare_home()
    started = time.monotonic()
    try:
        story = _tell(console)
    except StoryError as problem:
        console.print(f"[red]The story broke off.[/] {problem}")
        return 1
    _close(story, time.monotonic() - started)
    return 0


def _tell(console: Console) -> Story:
    import dagster as dg

    from mlops_assets.catalog import gather

    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        model = gather().model(MODEL)
        client, await_endpoint = stack.enter_context(_endpoint(model))
        story = Story(console, model, instance, client)
        first = _from_raw_data_to_a_champion(story)
        with story.step("Online features, and the endpoint follows the release"):
            story.publish_online(_midnight(REPLAY_FROM))
            await_endpoint()
            story.await_versions({first})
        second = _until_retrained(story, first)
        _canary(story, first, second)
        _back_and_forward(story, first, second)
    return story


def _from_raw_data_to_a_champion(story: Story) -> str:
    from mlops_assets.catalog import gather

    with story.step("Sources, features and labels of January to March, in one run"):
        story.fill(FIRST_DAY, FIRST_CUTOFF - timedelta(days=1))
    with story.step(f"Training set, candidate, gate, champion, Bento and release as of {FIRST_CUTOFF}"):
        result = story.run_job(_train_job(story.model), partition=str(FIRST_CUTOFF))
        version = story.tell_training("trained and released", story.model, result, str(FIRST_CUTOFF))
    for name in OTHER_MODELS:
        other = gather().model(name)
        with story.step(f"{name}: {type(other.trainer).__name__}, {other.gate.metric}"):
            result = story.run_job(_train_job(other), partition=str(FIRST_CUTOFF))
            story.tell_training("trained and released", other, result, str(FIRST_CUTOFF))
    with story.step("Spring passes: tables up to the middle of July"):
        story.fill(FIRST_CUTOFF, REPLAY_FROM - timedelta(days=1))
    return version


def _until_retrained(story: Story, first: str) -> str:
    """Replay days until the reports fail and the sensor asks for a retraining; then train as it asks."""
    day = REPLAY_FROM
    requests: Sequence[dg.RunRequest] = ()
    with story.step("Replay days against the endpoint until its reports fail"):
        while not requests and day < REPLAY_FROM + timedelta(days=7):
            _serve_a_day(story, day)
            requests = story.tick("retrain").run_requests or ()
            day += timedelta(days=1)
    if not requests:
        raise StoryError.of("the retraining sensor", "a request within seven days", "none")
    request = requests[0]
    story.say(f"The sensor asks for a training as of {request.partition_key}: {request.tags.get('mlops/reason')}")
    story.tell(
        "retraining requested",
        cutoff=str(request.partition_key),
        gate=", ".join(story.failing_checks(day - timedelta(days=1))),
    )
    with story.step(f"Retrain as of {request.partition_key}"):
        result = story.run_job(_train_job(story.model), partition=request.partition_key, tags=dict(request.tags))
        second = story.tell_training("retrained, canary begun", story.model, result, str(request.partition_key))
    if second == first or story.traffic.count("v") != 2:
        raise StoryError.of("the retraining", "a new version with a share of the traffic", story.traffic)
    return second


def _canary(story: Story, first: str, second: str) -> None:
    """Days of traffic, a tick of the rollout sensor after each, until the canary is the champion."""
    day = REPLAY_FROM + timedelta(days=1)
    with story.step("Canary: more traffic after each day that goes well"):
        story.await_versions({first, second})
        while story.champion != second:
            if day > REPLAY_FROM + timedelta(days=10):
                raise StoryError.of("the canary", f"version {second} as champion", story.traffic)
            _serve_a_day(story, day)
            before = story.traffic
            story.say(story.tick("rollout").skip_reason.skip_message)
            if story.traffic != before:
                story.tell("canary advanced", version=second)
            day += timedelta(days=1)
        story.await_versions({second})
        _serve_a_day(story, day)
    for version, rows, metric in live_metrics(story.model, REPLAY_FROM + timedelta(days=1), day):
        story.tell(f"live, {rows} flights", version=version, metric=f"{story.model.gate.metric} {metric:.4f}")


def _back_and_forward(story: Story, first: str, second: str) -> None:
    with story.step("Roll back with one command, and forward again"):
        story.command("rollback", story.model.id, "--why", "to show that it takes one command")
        story.await_versions({first})
        story.tell("rolled back", version=first)
        story.command("promote", story.model.id, "--version", second, "--why", "forward again")
        story.await_versions({second})
        story.tell("promoted forward", version=second)


def _serve_a_day(story: Story, day: date) -> None:
    """One day of the platform's life: tables, online features, requests, predictions, scores and reports."""
    story.fill(day, day)
    story.publish_online(_midnight(day))
    asked = story.replay(day)
    story.await_logged(day, asked)
    reports = story.report(day)
    drift, performance = reports["drift_report"], reports["performance_report"]
    metric = performance.get("metric")
    shown = (
        "too few labels"
        if metric is None
        else f"{story.model.gate.metric} {metric:.4f} (holdout {performance['reference']:.4f})"
    )
    failing = story.failing_checks(day)
    story.say(
        f"{day}: {asked} requests, {shown}, {drift['drifted_share']:.0%} of the inputs drifted"
        + (f" [yellow]failing: {', '.join(failing)}[/]" if failing else "")
    )
    story.tell(
        f"served {day}",
        version=story.champion,
        metric="" if metric is None else f"{story.model.gate.metric} {metric:.4f}",
        gate=", ".join(failing),
    )


@contextmanager
def _endpoint(model: ModelPipeline) -> Iterator[tuple[httpx.Client, Callable[[], None]]]:
    """The endpoint as `mlops up` runs it, on a free port: a client of it, and what waits until it answers.

    It starts while the first tables are filled, and takes up each release when there is one.
    """
    import httpx

    from mlops_assets.processes import await_ready, endpoint_service, free_port, running

    def quiet(_line: str) -> None:
        """The story has its own lines."""

    service = endpoint_service(free_port(3001), [model.id])
    with (
        running([service], home() / "logs", say=quiet) as started,
        httpx.Client(base_url=str(service.url), timeout=30) as client,
    ):
        yield client, partial(await_ready, started, say=quiet)


def _train_job(model: ModelPipeline) -> str:
    from mlops_assets.retraining import training_job_name

    return training_job_name(model)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _close(story: Story, seconds: float) -> None:
    """What happened, how long it took, and where to look."""
    from rich.table import Table

    table = Table(*(column.name for column in fields(Chapter)), title="What happened", title_justify="left")
    for chapter in story.chapters:
        table.add_row(*astuple(chapter))
    steps = Table("step", "seconds", title="Time of each step", title_justify="left")
    for name, spent in story.seconds.items():
        steps.add_row(name, f"{spent:.1f}")
    steps.add_row("total", f"{seconds:.1f}")
    story.console.print(table, steps, sep="\n\n")
    for page in sorted((home() / "reports" / MODEL).rglob("*.html")):
        story.console.print(f"report  {page.as_uri()}", soft_wrap=True)
    story.console.print(f"state   {home()}", soft_wrap=True)
    story.console.print(
        "Look next: 'make up' starts Dagster, MLflow, the reports and the endpoint and says where each is;"
    )
    story.console.print(f"           '.venv/bin/mlops history {MODEL}' tells who did what, when and why.")
    document = {"seconds": story.seconds, "chapters": [asdict(chapter) for chapter in story.chapters]}
    (home() / STORY).write_text(json.dumps(document, indent=2))


def _turn_the_page(console: Console) -> None:
    """An earlier story is moved aside whole: trained again as of spring, a model would meet its own future."""
    from resources.releases import ReleaseStore

    if not ((home() / STORY).exists() or ReleaseStore().path(MODEL).exists()):
        return
    aside = next(path for number in count(1) if not (path := home().with_name(f"{home().name}.{number}")).exists())
    home().rename(aside)
    console.print(f"An earlier story was told here; it is kept in {aside}.", soft_wrap=True)
